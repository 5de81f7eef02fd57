#include "store/segment_in_file.h"

#include <fmt/format.h>

#include <utility>
#include <variant>
#include <vector>

#include "io/file.h"
#include "store/batch_reader.h"
#include "store/damage.h"

namespace vmshadow::store {

using format::RecordType;

namespace {

/// A damaged head does not say what kind of segment it is; a mark of it, or the first record that
/// only one kind has, does. What has neither counts as an archive if it is listed.
format::SegmentKind guess_kind(const SegmentInFile& segment) {
  if (segment.salt) return format::SegmentKind::journal;
  SegmentScanner scanner(segment.source, format::kSegmentHeadBytes);
  while (true) {
    const ScanItem item = scanner.next();
    if (std::holds_alternative<EndOfSegment>(item)) return format::SegmentKind::archive;
    const auto* record = std::get_if<GoodRecord>(&item);
    if (record == nullptr) continue;
    switch (record->prefix.head.type) {
      case RecordType::segment_list:
      case RecordType::grant:
      case RecordType::epoch_end:
      case RecordType::commit:
      case RecordType::mark:
        return format::SegmentKind::journal;
      case RecordType::archived_epoch:
      case RecordType::loss:
        return format::SegmentKind::archive;
      default:
        break;
    }
  }
}

Status check_head(const StoreDirectory& directory, SegmentInFile& segment) {
  std::vector<std::byte> bytes(format::kSegmentHeadBytes);
  bytes.resize(segment.source.read_at(0, bytes));
  const auto head = format::decode_segment_head(bytes);
  const auto path = [&] { return directory.segment_path(segment.where.tier, segment.where.id); };
  if (!head) {
    if (head.error().code == Errc::version) {
      return fail(Errc::version, fmt::format("'{}': {}", path(), head.error().message));
    }
    segment.head_trouble = head.error().message;
    segment.salt = find_salt(segment.where.id, segment.source);
    segment.kind = guess_kind(segment);
    return {};
  }
  if (head->store != directory.id()) {
    return fail(Errc::invalid_argument,
                fmt::format("'{}' belongs to another store (id {}, this one is {}): move it away",
                            path(), store_id_text(head->store), store_id_text(directory.id())));
  }
  if (head->segment != segment.where.id) {
    return fail(Errc::invalid_argument, fmt::format("'{}' is segment {}: give it its name back",
                                                    path(), segment_file_name(head->segment)));
  }
  segment.kind = head->kind;
  segment.salt = head->salt;
  return {};
}

}  // namespace

Result<SegmentInFile> open_segment_file(const StoreDirectory& directory,
                                        const StoreDirectory::SegmentFile& where) {
  VMSHADOW_ASSIGN(UniqueFd fd, io::open_shared(directory.segment_path(where.tier, where.id)));
  VMSHADOW_ASSIGN(const FileSource source, FileSource::create(fd.get()));
  SegmentInFile segment{where, std::move(fd), source, {}, {}, {}};
  VMSHADOW_TRY(check_head(directory, segment));
  return segment;
}

}  // namespace vmshadow::store
