#include "store/last_segment.h"

#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace vmshadow::store {

using format::JournalPosition;
using format::RecordType;

namespace {

/// A mark of this segment's present life.
std::optional<format::Mark> own_mark(SegmentId segment, const format::SegmentSalt& salt,
                                     const GoodRecord& record) {
  if (record.prefix.head.type != RecordType::mark) return std::nullopt;
  const auto mark = format::decode_mark(record.body);
  if (!mark || mark->begin.segment != segment || mark->salt != salt ||
      mark->begin.offset.value < format::kSegmentHeadBytes ||
      mark->begin.offset.value > record.offset) {
    return std::nullopt;
  }
  return *mark;
}

struct LookAhead {
  std::uint64_t durable{};  ///< offset in the segment
  std::vector<std::string> commits;
};

/// What the marks from `from` on say was durable, and which commits stand in their batches.
LookAhead look_ahead(SegmentId segment, const format::SegmentSalt& salt, const ByteSource& source,
                     std::uint64_t from, const JournalIndex* index) {
  LookAhead seen;
  std::vector<std::pair<std::uint64_t, std::string>> commits;  // of a batch whose mark may come
  SegmentScanner scanner(source, from);
  while (true) {
    const ScanItem item = scanner.next();
    if (std::holds_alternative<EndOfSegment>(item)) return seen;
    const auto* record = std::get_if<GoodRecord>(&item);
    if (record == nullptr) continue;
    if (index != nullptr && record->prefix.head.type == RecordType::commit) {
      commits.emplace_back(record->offset,
                           fmt::format("epoch {} of VM '{}'", record->prefix.head.epoch.value,
                                       index->name_of(record->prefix.head.vm)));
    }
    const auto mark = own_mark(segment, salt, *record);
    if (!mark) continue;
    for (auto& [offset, text] : std::exchange(commits, {})) {
      if (offset >= mark->begin.offset.value) seen.commits.push_back(std::move(text));
    }
    // A mark never says so of what lies behind itself.
    if (mark->durable.segment == segment && mark->durable.offset.value <= record->offset) {
      seen.durable = std::max(seen.durable, mark->durable.offset.value);
    }
  }
}

class LastSegmentReader {
 public:
  LastSegmentReader(SegmentId segment, const format::SegmentSalt& salt, const ByteSource& source,
                    const ScanHooks& hooks, Recovery& recovery, IndexBuilder& builder)
      : segment_(segment),
        salt_(salt),
        source_(source),
        hooks_(hooks),
        recovery_(recovery),
        builder_(builder),
        scanner_(source, format::kSegmentHeadBytes) {}

  void run();

 private:
  /// A record of a batch whose mark was not seen yet, or a place where there is none.
  struct Item {
    std::uint64_t offset{};
    format::SkeletonWriter::Mark skeleton;  ///< before it
    format::RecordPrefix prefix;
    std::vector<std::byte> front;
    std::optional<BadRegion> bad;
    bool is_record = true;  ///< as it was written, if only a check of hooks_ found it `bad`
  };

  /// False: the journal ends.
  [[nodiscard]] bool take(const GoodRecord& record);
  [[nodiscard]] bool take(const BadRegion& region);
  [[nodiscard]] bool take_mark(const GoodRecord& record, const format::Mark& mark);
  void keep(const GoodRecord& record);
  /// Whether the items from `mark`'s begin on are what it was made for.
  [[nodiscard]] bool is_whole(const format::Mark& mark) const;
  [[nodiscard]] bool was_durable(std::uint64_t begin);
  /// The items before `offset` count, as good or as damage.
  void count_before(std::uint64_t offset);
  /// The journal ends where the items begin.
  void end_here(std::string what, bool is_torn = true);
  void report_progress();

  const SegmentId segment_;
  const format::SegmentSalt& salt_;
  const ByteSource& source_;
  const ScanHooks& hooks_;
  Recovery& recovery_;
  IndexBuilder& builder_;
  SegmentScanner scanner_;
  std::uint64_t at_ = 0;                             ///< where what was read last stands
  std::uint64_t begin_ = format::kSegmentHeadBytes;  ///< of the items
  std::vector<Item> items_;
  std::optional<LookAhead> ahead_;  ///< from the first trouble on, itself included
  std::uint64_t reported_ = 0;
};

void LastSegmentReader::run() {
  while (true) {
    at_ = scanner_.offset();
    const ScanItem item = scanner_.next();
    report_progress();
    if (std::holds_alternative<EndOfSegment>(item)) {
      end_here("the segment ends inside a batch", !items_.empty());
      return;
    }
    const auto* record = std::get_if<GoodRecord>(&item);
    if (!(record != nullptr ? take(*record) : take(std::get<BadRegion>(item)))) return;
  }
}

bool LastSegmentReader::take(const GoodRecord& record) {
  if (const auto mark = own_mark(segment_, salt_, record)) return take_mark(record, *mark);
  const RecordType type = record.prefix.head.type;
  const bool is_end = type == RecordType::skeleton || type == RecordType::seal;
  if ((is_end || type == RecordType::mark) && !was_durable(begin_)) {
    end_here(is_end && items_.empty() ? "the segment's end is not whole"
                                      : "the batch that begins there is not whole");
    return false;
  }
  keep(record);
  return true;
}

bool LastSegmentReader::take(const BadRegion& region) {
  if (!was_durable(begin_)) {
    end_here(region.what, !region.unwritten || !items_.empty());
    return false;
  }
  // With a skeleton the damage would be forgotten until somebody reads what it hit.
  recovery_.tail_is_damaged = true;
  items_.push_back({region.offset, recovery_.tail_skeleton.mark(), {}, {}, region, false});
  return true;
}

bool LastSegmentReader::take_mark(const GoodRecord& record, const format::Mark& mark) {
  const std::uint64_t begin = mark.begin.offset.value;
  if (begin > begin_) {
    // What is before has lost its mark.
    if (!was_durable(begin_)) {
      end_here("a batch has no mark");
      return false;
    }
    count_before(begin);
  }
  if (!is_whole(mark)) {
    if (!was_durable(begin_)) {
      end_here("the batch that begins there is not whole");
      return false;
    }
    const auto bad = [](const Item& item) { return item.bad.has_value(); };
    if (std::none_of(items_.begin(), items_.end(), bad)) {
      // Each record is a record, but not all are those that were written here.
      recovery_.tail_is_damaged = true;
      items_.push_back({record.offset,
                        recovery_.tail_skeleton.mark(),
                        {},
                        {},
                        BadRegion{begin_, scanner_.offset(),
                                  "the records are not those that the batch's mark was made for",
                                  std::nullopt, false},
                        false});
    }
  }
  ++recovery_.records;
  count_before(scanner_.offset());
  return true;
}

void LastSegmentReader::keep(const GoodRecord& record) {
  Item item{record.offset, recovery_.tail_skeleton.mark(), record.prefix, {}, {}, true};
  const std::size_t front = format::skeleton_meta_bytes(record.prefix.head.type, record.body);
  item.front.assign(record.body.begin(), record.body.begin() + static_cast<std::ptrdiff_t>(front));
  recovery_.tail_skeleton.add(record.offset, record.prefix, record.body);
  if (hooks_.check) {
    if (const auto sound = hooks_.check(record); !sound) {
      item.bad =
          BadRegion{record.offset, scanner_.offset(), sound.error().message, record.prefix, false};
    }
  }
  items_.push_back(std::move(item));
}

bool LastSegmentReader::is_whole(const format::Mark& mark) const {
  std::uint64_t chain = 0;
  for (const Item& item : items_) {
    if (!item.is_record) return false;
    chain = format::extend_chain(chain, item.prefix.prefix_checksum);
  }
  return mark.begin.offset.value == begin_ && mark.chain == chain;
}

bool LastSegmentReader::was_durable(std::uint64_t begin) {
  if (!ahead_) {
    ahead_ = look_ahead(segment_, salt_, source_, at_, recovery_.index.get());
  }
  return begin < ahead_->durable;
}

void LastSegmentReader::count_before(std::uint64_t offset) {
  auto item = items_.begin();
  for (; item != items_.end() && item->offset < offset; ++item) {
    if (item->bad) {
      builder_.add_bad(segment_, *item->bad);
      continue;
    }
    ++recovery_.records;
    builder_.add({segment_, SegmentOffset{item->offset}}, item->prefix, item->front);
  }
  items_.erase(items_.begin(), item);
  begin_ = offset;
}

void LastSegmentReader::end_here(std::string what, bool is_torn) {
  if (begin_ == format::kSegmentHeadBytes) {
    // All that a segment is begun with is durable before it is used.
    recovery_.torn_segment = segment_;
    return;
  }
  if (!items_.empty()) recovery_.tail_skeleton.rewind(items_.front().skeleton);
  recovery_.tail = JournalPosition{segment_, SegmentOffset{begin_}};
  if (!is_torn) return;
  recovery_.torn_tail = TornTail{*recovery_.tail, source_.bytes() - begin_, std::move(what),
                                 ahead_ ? std::move(ahead_->commits) : std::vector<std::string>()};
}

void LastSegmentReader::report_progress() {
  if (!hooks_.progress || scanner_.offset() - reported_ < kScanProgressBytes) return;
  reported_ = scanner_.offset();
  hooks_.progress({recovery_.progress.bytes_done + reported_, recovery_.progress.bytes_total});
}

}  // namespace

std::optional<format::SegmentSalt> find_salt(SegmentId segment, const ByteSource& source) {
  SegmentScanner scanner(source, format::kSegmentHeadBytes);
  while (true) {
    const ScanItem item = scanner.next();
    if (std::holds_alternative<EndOfSegment>(item)) return std::nullopt;
    const auto* record = std::get_if<GoodRecord>(&item);
    if (record == nullptr || record->prefix.head.type != RecordType::mark) continue;
    const auto mark = format::decode_mark(record->body);
    if (mark && own_mark(segment, mark->salt, *record)) return mark->salt;
  }
}

std::uint64_t durable_beyond(SegmentId segment, const format::SegmentSalt& salt,
                             const ByteSource& source, std::uint64_t from) {
  return look_ahead(segment, salt, source, from, nullptr).durable;
}

void recover_last_segment(SegmentId segment, const format::SegmentSalt& salt,
                          const ByteSource& source, const ScanHooks& hooks, Recovery& recovery,
                          IndexBuilder& builder) {
  recovery.tail_salt = salt;
  LastSegmentReader(segment, salt, source, hooks, recovery, builder).run();
}

}  // namespace vmshadow::store
