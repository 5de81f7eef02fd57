#include "store/scrubber.h"

#include <fcntl.h>

#include <optional>
#include <utility>

#include "base/unique_fd.h"
#include "format/epoch_records.h"
#include "io/file.h"
#include "store/batch_check.h"
#include "store/record_check.h"
#include "store/segment_scanner.h"
#include "store/segment_skeleton.h"

namespace vmshadow::store {

/// The segment being read.
struct Scrubber::Current {
  Current(SegmentId segment, format::SegmentKind kind, UniqueFd opened, const FileSource& bytes)
      : id(segment),
        fd(std::move(opened)),
        source(bytes),
        scanner(source, format::kSegmentHeadBytes) {
    std::vector<std::byte> head_bytes(format::kSegmentHeadBytes);
    head_bytes.resize(source.read_at(0, head_bytes));
    const auto head = format::decode_segment_head(head_bytes);
    // A damaged head costs nothing, but it does not say what the marks must be.
    if (head && kind == format::SegmentKind::journal) batches.emplace(id, head->salt);
  }
  SegmentId id;
  UniqueFd fd;
  FileSource source;
  SegmentScanner scanner;
  std::optional<BatchCheck> batches;
};

Scrubber::Scrubber(const SegmentCatalog& catalog, const JournalIndex& index)
    : catalog_(catalog), index_(index) {}
Scrubber::~Scrubber() = default;

bool Scrubber::begin_next_segment() {
  for (const auto& [id, facts] : catalog_.all()) {
    if (id <= last_ || !facts.sealed || !facts.listed || facts.missing) continue;
    last_ = id;
    auto fd = io::open_shared(catalog_.directory().segment_path(facts.tier, id));
    if (!fd) continue;  // archived just now
    const auto source = FileSource::create(fd->get());
    if (!source) continue;
    // Only an offer to the kernel: where it declines, what was read lately is not read anew.
    [[maybe_unused]] const int ignored = ::posix_fadvise(fd->get(), 0, 0, POSIX_FADV_DONTNEED);
    current_ = std::make_unique<Current>(id, facts.kind, *std::move(fd), *source);
    return true;
  }
  return false;
}

namespace {

/// What the records in a bad region were: the skeleton says, if it is whole.
std::vector<Damage> name_damage(SegmentId id, const ByteSource& source, const BadRegion& region,
                                const JournalIndex& index) {
  std::vector<Damage> damage;
  const auto outcome = visit_skeleton(
      source, id, [&](std::uint64_t offset, const format::RecordPrefix& prefix, ByteSpan) {
        if (offset < region.offset || offset >= region.end) return;
        damage.push_back({{id, SegmentOffset{offset}},
                          format::kRecordPrefixBytes + prefix.body_bytes,
                          region.what,
                          index.name_of(prefix.head.vm),
                          prefix.head.epoch});
      });
  if (!outcome.visited || damage.empty()) {
    damage = {
        {{id, SegmentOffset{region.offset}}, region.end - region.offset, region.what, {}, {}}};
  }
  return damage;
}

}  // namespace

std::vector<Damage> Scrubber::step(std::uint64_t bytes) {
  std::vector<Damage> found;
  const auto add = [&](const BadRegion& region) {
    const auto damage = name_damage(current_->id, current_->source, region, index_);
    found.insert(found.end(), damage.begin(), damage.end());
  };
  PageScratch scratch;
  for (std::uint64_t done = 0; done < bytes;) {
    if (current_ == nullptr && !begin_next_segment()) {
      if (last_.value > 0) ++rounds_;
      last_ = SegmentId{0};
      break;
    }
    SegmentScanner& scanner = current_->scanner;
    const std::uint64_t before = scanner.offset();
    const ScanItem item = scanner.next();
    done += scanner.offset() - before;
    scrubbed_bytes_ += scanner.offset() - before;
    if (std::holds_alternative<EndOfSegment>(item)) {
      current_.reset();
    } else if (const auto* region = std::get_if<BadRegion>(&item)) {
      if (current_->batches) current_->batches->skip();
      add(*region);
    } else {
      const auto& record = std::get<GoodRecord>(item);
      if (auto& batches = current_->batches; batches && !batches->add(record, scanner.offset())) {
        found.push_back({{current_->id, SegmentOffset{batches->begin()}},
                         scanner.offset() - batches->begin(),
                         "the mark of the batch is not that of its records",
                         {},
                         {}});
      }
      if (const auto sound = check_decodes(record, LostPages::accepted, scratch); !sound) {
        add({record.offset, scanner.offset(), sound.error().message, record.prefix});
      }
    }
  }
  return found;
}

}  // namespace vmshadow::store
