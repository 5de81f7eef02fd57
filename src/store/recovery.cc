#include "store/recovery.h"

#include <fmt/format.h>

#include <algorithm>

#include "io/file.h"

namespace vmshadow::store {

using format::JournalPosition;
using format::RecordType;

namespace {

constexpr std::uint64_t kProgressBytes = std::uint64_t{8} << 20;
/// For each byte of a missing segment a grant record may be missing: its size is guessed high.
constexpr std::uint64_t kMissingSegmentBytesGuess = std::uint64_t{1} << 32;
constexpr std::uint64_t kMissingSegmentsNamedMax = 1024;

/// The durable position that a record of the journal's own carries.
std::optional<JournalPosition> durable_mark(const GoodRecord& record) {
  switch (record.prefix.head.type) {
    case RecordType::commit:
      if (const auto commit = format::decode_commit(record.body)) return commit->durable;
      return std::nullopt;
    case RecordType::grant:
      if (const auto grant = format::decode_grant(record.body)) return grant->durable;
      return std::nullopt;
    case RecordType::pad:
      if (const auto pad = format::decode_pad(record.body)) return pad->durable;
      return std::nullopt;
    default:
      return std::nullopt;
  }
}

struct LookAhead {
  std::uint64_t durable{};  ///< offset in the segment
  std::vector<std::string> commits;
};

/// What the records behind a bad place say was durable.
LookAhead look_ahead(SegmentId segment, const ByteSource& source, std::uint64_t from,
                     const JournalIndex& index) {
  LookAhead seen;
  SegmentScanner scanner(source, from);
  while (true) {
    const ScanItem item = scanner.next();
    if (std::holds_alternative<EndOfSegment>(item)) return seen;
    const auto* record = std::get_if<GoodRecord>(&item);
    if (record == nullptr) continue;
    const auto mark = durable_mark(*record);
    // A mark never lies behind its own record.
    if (mark && mark->segment == segment && mark->offset.value <= record->offset) {
      seen.durable = std::max(seen.durable, mark->offset.value);
    }
    if (record->prefix.head.type == RecordType::commit) {
      seen.commits.push_back(fmt::format("epoch {} of VM '{}'", record->prefix.head.epoch.value,
                                         index.name_of(record->prefix.head.vm)));
    }
  }
}

}  // namespace

void recover_segment(SegmentId segment, const ByteSource& source, bool is_last,
                     const ScanHooks& hooks, Recovery& recovery, IndexBuilder& builder) {
  SegmentScanner scanner(source, format::kSegmentHeadBytes);
  std::optional<LookAhead> ahead;
  std::uint64_t reported = 0;
  while (true) {
    const ScanItem item = scanner.next();
    if (hooks.progress && scanner.offset() - reported >= kProgressBytes) {
      reported = scanner.offset();
      hooks.progress({recovery.progress.bytes_done + reported, recovery.progress.bytes_total});
    }
    if (std::holds_alternative<EndOfSegment>(item)) break;
    if (const auto* record = std::get_if<GoodRecord>(&item)) {
      ++recovery.records;
      if (hooks.check) {
        if (const auto sound = hooks.check(*record); !sound) {
          builder.add_bad(
              segment, {record->offset, scanner.offset(), sound.error().message, record->prefix});
          continue;
        }
      }
      builder.add({segment, SegmentOffset{record->offset}}, record->prefix, record->body);
      continue;
    }
    const auto& region = std::get<BadRegion>(item);
    if (is_last) {
      if (!ahead) {
        const std::uint64_t from = region.end + format::alignment_gap(region.end);
        ahead = look_ahead(segment, source, from, *recovery.index);
      }
      if (region.offset >= ahead->durable) {
        recovery.torn_tail = TornTail{{segment, SegmentOffset{region.offset}},
                                      source.bytes() - region.offset,
                                      region.what,
                                      std::move(ahead->commits)};
        recovery.tail = recovery.torn_tail->at;
        return;
      }
    }
    builder.add_bad(segment, region);
  }
  const std::uint64_t end = std::max<std::uint64_t>(scanner.offset(), format::kSegmentHeadBytes);
  recovery.tail = JournalPosition{segment, SegmentOffset{end}};
}

namespace {

/// Checks a segment's head. False: the head is bad, but the records behind it may be good.
Result<bool> check_head(const StoreDirectory& directory, SegmentId segment,
                        const ByteSource& source, std::string& what) {
  std::vector<std::byte> bytes(format::kSegmentHeadBytes);
  bytes.resize(source.read_at(0, bytes));
  const auto head = format::decode_segment_head(bytes);
  const std::string path = directory.segment_path(segment);
  if (!head) {
    if (head.error().code == Errc::version) {
      return fail(Errc::version, fmt::format("'{}': {}", path, head.error().message));
    }
    what = head.error().message;
    return false;
  }
  if (head->store != directory.id()) {
    return fail(Errc::invalid_argument,
                fmt::format("'{}' belongs to another store (id {}, this one is {}): move it away",
                            path, store_id_text(head->store), store_id_text(directory.id())));
  }
  if (head->segment != segment) {
    return fail(Errc::invalid_argument, fmt::format("'{}' is segment {}: give it its name back",
                                                    path, segment_file_name(head->segment)));
  }
  return true;
}

void note_missing(SegmentId expected, SegmentId found, IndexBuilder& builder) {
  const std::uint64_t count = found.value - expected.value;
  for (std::uint64_t i = 0; i < std::min(count, kMissingSegmentsNamedMax); ++i) {
    builder.add_missing_segment(SegmentId{expected.value + i}, kMissingSegmentBytesGuess);
  }
}

}  // namespace

Result<Recovery> recover(const StoreDirectory& directory, const ScanHooks& hooks) {
  Recovery recovery;
  recovery.index = std::make_shared<JournalIndex>();
  IndexBuilder builder(*recovery.index);
  VMSHADOW_ASSIGN(auto listing, directory.list());
  recovery.foreign = std::move(listing.foreign);

  std::vector<UniqueFd> files;
  ScanProgress& progress = recovery.progress;
  for (const SegmentId id : listing.segments) {
    VMSHADOW_ASSIGN(files.emplace_back(), io::open_for_reading(directory.segment_path(id)));
    VMSHADOW_ASSIGN(const std::uint64_t bytes, io::file_bytes(files.back().get()));
    progress.bytes_total += bytes;
  }

  SegmentId expected{1};
  for (std::size_t i = 0; i < files.size(); ++i) {
    const SegmentId id = listing.segments[i];
    note_missing(expected, id, builder);
    expected = id.next();
    VMSHADOW_ASSIGN(const FileSource source, FileSource::create(files[i].get()));
    std::string what;
    VMSHADOW_ASSIGN(const bool head_is_good, check_head(directory, id, source, what));
    if (!head_is_good) {
      // Records come only after the head is durable: a short file is a creation cut short.
      if (i + 1 == files.size() && source.bytes() <= format::kSegmentHeadBytes) {
        recovery.torn_segment = id;
        break;
      }
      builder.add_bad(id, {0, format::kSegmentHeadBytes, what, std::nullopt});
    }
    // The writer syncs a segment before it makes the next: only the last one can be torn.
    recover_segment(id, source, i + 1 == files.size(), hooks, recovery, builder);
    progress.bytes_done += source.bytes();
    if (hooks.progress) hooks.progress(progress);
  }
  recovery.damage = builder.finish();
  recovery.unknown_bytes = builder.unknown_bytes();
  return recovery;
}

}  // namespace vmshadow::store
