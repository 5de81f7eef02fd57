#include "store/batch_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "store/batch_check.h"

namespace vmshadow::store {

using format::JournalPosition;
using format::RecordType;
using format::SegmentSalt;

namespace {

constexpr std::string_view kNotItsRecords =
    "the records are not those that the batch's mark was made for";

bool ends_segment(RecordType type) {
  return type == RecordType::skeleton || type == RecordType::pad || type == RecordType::seal;
}

struct LookAhead {
  std::uint64_t durable{};  ///< offset in the segment
  struct Commit {
    std::uint64_t offset{};
    format::RecordHead head;
    bool is_own{};  ///< a mark of this segment stands behind it
  };
  std::vector<Commit> commits;
};

/// What the marks from `from` on, and the seal, say was durable, and which commits stand there.
LookAhead look_ahead(SegmentId segment, const SegmentSalt& salt, const ByteSource& source,
                     std::uint64_t from) {
  LookAhead seen;
  SegmentScanner scanner(source, from);
  while (true) {
    const ScanItem item = scanner.next();
    if (std::holds_alternative<EndOfSegment>(item)) return seen;
    const auto* record = std::get_if<GoodRecord>(&item);
    if (record == nullptr) continue;
    const auto durable_to = [&](std::uint64_t offset) {
      // Nothing says so of what lies behind itself.
      if (offset <= record->offset) seen.durable = std::max(seen.durable, offset);
    };
    const RecordType type = record->prefix.head.type;
    if (type == RecordType::commit) {
      seen.commits.push_back({record->offset, record->prefix.head, false});
    } else if (type == RecordType::seal) {
      const auto seal = format::decode_seal(record->body);
      if (seal && seal->segment == segment && seal->salt == salt) durable_to(seal->skeleton_offset);
    } else if (const auto mark = own_mark(segment, salt, *record)) {
      for (auto commit = seen.commits.rbegin();
           commit != seen.commits.rend() && commit->offset >= mark->begin.offset.value; ++commit) {
        commit->is_own = true;
      }
      if (mark->durable.segment == segment) durable_to(mark->durable.offset.value);
    }
  }
}

class BatchReader {
 public:
  /// `is_last`: its end is to be found. Else all of it was durable.
  BatchReader(SegmentId segment, const std::optional<SegmentSalt>& salt, bool is_last,
              const ByteSource& source, const ScanHooks& hooks, Recovery& recovery,
              IndexBuilder& builder)
      : segment_(segment),
        salt_(salt),
        is_last_(is_last),
        source_(source),
        hooks_(hooks),
        recovery_(recovery),
        builder_(builder) {
    scanner_.emplace(source, format::kSegmentHeadBytes);
  }

  void run();

 private:
  /// A record of a batch whose mark was not seen yet, or a place where there is none.
  struct Item {
    std::uint64_t offset{};
    format::SkeletonWriter::Mark skeleton;       ///< before it
    std::optional<format::RecordPrefix> prefix;  ///< of a place, if it has a good one
    std::vector<std::byte> front;
    std::optional<BadRegion> bad;
    bool is_record = true;  ///< as it was written, if only a check of hooks_ found it `bad`
  };
  enum class Proof { by_mark, none };

  /// False: the journal ends.
  [[nodiscard]] bool take(const GoodRecord& record);
  [[nodiscard]] bool take(const BadRegion& region);
  [[nodiscard]] bool take_mark(const format::Mark& mark);
  void keep(const GoodRecord& record);
  /// Whether the items are those that `mark` was made for, be some of their bodies damaged.
  [[nodiscard]] bool proves(const format::Mark& mark) const;
  [[nodiscard]] bool has_bad_place(std::uint64_t before) const;
  [[nodiscard]] bool was_durable();
  /// Whether the batch is to be read once more before it is called damaged.
  [[nodiscard]] bool read_again();
  /// The items before `offset` count, as good or as damage. Without a proof some do not.
  void count_before(std::uint64_t offset, Proof proof);
  void note_unproven(std::uint64_t end, std::string_view what);
  void end_of_file();
  /// The journal ends where the items begin.
  void end_here(std::string what, bool is_torn = true);
  [[nodiscard]] std::vector<std::string> lost_commits();
  void report_progress();

  const SegmentId segment_;
  const std::optional<SegmentSalt> salt_;
  const bool is_last_;
  const ByteSource& source_;
  const ScanHooks& hooks_;
  Recovery& recovery_;
  IndexBuilder& builder_;
  std::optional<SegmentScanner> scanner_;
  std::uint64_t begin_ = format::kSegmentHeadBytes;  ///< of the items
  std::vector<Item> items_;
  format::SkeletonWriter skeleton_;
  std::optional<LookAhead> ahead_;           ///< from the batch with the first trouble on
  std::optional<std::uint64_t> read_again_;  ///< the batch that was, by its begin
  std::uint64_t reported_ = 0;
};

void BatchReader::run() {
  while (true) {
    const ScanItem item = scanner_->next();
    report_progress();
    if (std::holds_alternative<EndOfSegment>(item)) {
      if (is_last_ && !items_.empty() && was_durable() && read_again()) continue;
      end_of_file();
      break;
    }
    const auto* record = std::get_if<GoodRecord>(&item);
    if (!(record != nullptr ? take(*record) : take(std::get<BadRegion>(item)))) break;
  }
  if (is_last_) recovery_.tail_skeleton = std::move(skeleton_);
}

bool BatchReader::take(const GoodRecord& record) {
  if (const auto mark = own_mark(segment_, salt_, record)) return take_mark(*mark);
  const RecordType type = record.prefix.head.type;
  const bool is_end = type == RecordType::skeleton || type == RecordType::seal;
  if ((is_end || type == RecordType::mark) && !was_durable()) {
    end_here(is_end && items_.empty() ? "the segment's end is not whole"
                                      : "the batch that begins there is not whole");
    return false;
  }
  keep(record);
  return true;
}

bool BatchReader::take(const BadRegion& region) {
  if (!was_durable()) {
    end_here(region.what, !region.unwritten || !items_.empty());
    return false;
  }
  if (!read_again()) {
    items_.push_back({region.offset, skeleton_.mark(), region.prefix, {}, region, false});
  }
  return true;
}

bool BatchReader::take_mark(const format::Mark& mark) {
  const std::uint64_t begin = mark.begin.offset.value;
  if (begin > begin_) {
    // What is before has lost its mark.
    if (!was_durable()) {
      end_here("a batch has no mark");
      return false;
    }
    if (read_again()) return true;
    if (!has_bad_place(begin)) note_unproven(begin, "the mark of a batch is not there");
    count_before(begin, Proof::none);
  }
  const Proof proof = proves(mark) ? Proof::by_mark : Proof::none;
  const std::uint64_t end = scanner_->offset();
  const bool has_bad = has_bad_place(end);
  if (proof == Proof::none || has_bad) {
    if (!was_durable()) {
      end_here("the batch that begins there is not whole");
      return false;
    }
    if (read_again()) return true;
    // Each record is a record, but not all are those that were written here.
    if (!has_bad) note_unproven(end, kNotItsRecords);
  }
  ++recovery_.records;
  count_before(end, proof);
  return true;
}

void BatchReader::keep(const GoodRecord& record) {
  Item item{record.offset, skeleton_.mark(), record.prefix, {}, {}, true};
  if (!ends_segment(record.prefix.head.type)) {
    const auto front =
        record.body.first(format::skeleton_meta_bytes(record.prefix.head.type, record.body));
    item.front.assign(front.begin(), front.end());
  }
  skeleton_.add(record.offset, record.prefix, record.body);
  if (hooks_.check) {
    if (const auto sound = hooks_.check(record); !sound) {
      item.bad =
          BadRegion{record.offset, scanner_->offset(), sound.error().message, record.prefix, false};
    }
  }
  items_.push_back(std::move(item));
}

bool BatchReader::proves(const format::Mark& mark) const {
  std::uint64_t chain = 0;
  for (const Item& item : items_) {
    if (!item.prefix) return false;
    chain = format::extend_chain(chain, item.prefix->prefix_checksum);
  }
  return mark.begin.offset.value == begin_ && mark.chain == chain;
}

bool BatchReader::has_bad_place(std::uint64_t before) const {
  return std::any_of(items_.begin(), items_.end(),
                     [&](const Item& item) { return item.offset < before && !item.is_record; });
}

bool BatchReader::was_durable() {
  if (!is_last_) return true;
  if (!ahead_) ahead_ = look_ahead(segment_, *salt_, source_, begin_);
  return begin_ < ahead_->durable;
}

/// Beside a store that writes, the scanner may have read the bytes ahead before they were written.
/// What look_ahead() found durable was written by then.
bool BatchReader::read_again() {
  if (!is_last_ || read_again_ == begin_) return false;
  read_again_ = begin_;
  if (!items_.empty()) skeleton_.rewind(items_.front().skeleton);
  items_.clear();
  scanner_.emplace(source_, begin_);
  return true;
}

void BatchReader::note_unproven(std::uint64_t end, std::string_view what) {
  builder_.add_bad(segment_, {begin_, end, std::string(what), std::nullopt, false});
}

void BatchReader::count_before(std::uint64_t offset, Proof proof) {
  std::optional<std::uint64_t> first_passed_over;
  std::size_t passed_over = 0;
  bool is_damaged = proof == Proof::none;
  auto item = items_.begin();
  for (; item != items_.end() && item->offset < offset; ++item) {
    is_damaged = is_damaged || !item->is_record;
    if (item->bad) {
      builder_.add_bad(segment_, *item->bad);
      continue;
    }
    ++recovery_.records;
    const JournalPosition at{segment_, SegmentOffset{item->offset}};
    if (proof == Proof::by_mark) {
      builder_.add(at, *item->prefix, item->front);
    } else if (!builder_.add_unproven(at, *item->prefix, item->front)) {
      if (!first_passed_over) first_passed_over = item->offset;
      ++passed_over;
    }
  }
  if (first_passed_over) {
    builder_.damage().push_back(
        {{segment_, SegmentOffset{*first_passed_over}},
         0,
         fmt::format("{} records that say which segments there are or what is kept do not count: "
                     "with their batch damaged, they could be of what the file held before",
                     passed_over),
         {},
         {}});
  }
  items_.erase(items_.begin(), item);
  begin_ = offset;
  // With a skeleton the damage would be forgotten until somebody reads what it hit.
  if (is_last_ && is_damaged) recovery_.tail_is_damaged = true;
}

void BatchReader::end_of_file() {
  if (!is_last_) {
    const bool has_lost_mark = std::any_of(items_.begin(), items_.end(), [](const Item& item) {
      return item.is_record && !ends_segment(item.prefix->head.type);
    });
    if (has_lost_mark && !has_bad_place(UINT64_MAX)) {
      note_unproven(source_.bytes(), "the mark of a batch is not there");
    }
    count_before(UINT64_MAX, Proof::none);
    return;
  }
  // A seal says so; else the mark that does would have ended the batch.
  if (!items_.empty() && was_durable()) {
    const std::uint64_t end = ahead_->durable;
    if (!has_bad_place(end)) note_unproven(end, "the mark of a batch is not there");
    count_before(end, Proof::none);
  }
  end_here("the segment ends inside a batch", !items_.empty());
}

void BatchReader::end_here(std::string what, bool is_torn) {
  std::vector<std::string> commits;
  if (is_torn) commits = lost_commits();
  if (begin_ == format::kSegmentHeadBytes) {
    recovery_.torn_segment = segment_;
    if (commits.empty()) return;
  } else {
    recovery_.tail = JournalPosition{segment_, SegmentOffset{begin_}};
  }
  if (!items_.empty()) skeleton_.rewind(items_.front().skeleton);
  if (!is_torn) return;
  recovery_.torn_tail = TornTail{{segment_, SegmentOffset{begin_}},
                                 source_.bytes() - begin_,
                                 std::move(what),
                                 std::move(commits)};
}

/// Those that a mark of this segment stands behind; and those that may have lost it, unless their
/// epochs were committed before: then they are of what the file held in an earlier life.
std::vector<std::string> BatchReader::lost_commits() {
  std::vector<std::string> lost;
  static_cast<void>(was_durable());  // looks ahead
  for (const LookAhead::Commit& commit : ahead_->commits) {
    if (commit.offset < begin_ || !(commit.is_own || builder_.may_come(commit.head))) continue;
    lost.push_back(fmt::format("epoch {} of VM '{}'", commit.head.epoch.value,
                               recovery_.index->name_of(commit.head.vm)));
  }
  return lost;
}

void BatchReader::report_progress() {
  if (!hooks_.progress || scanner_->offset() < reported_ + kScanProgressBytes) return;
  reported_ = scanner_->offset();
  hooks_.progress({recovery_.progress.bytes_done + reported_, recovery_.progress.bytes_total});
}

}  // namespace

std::optional<SegmentSalt> find_salt(SegmentId segment, const ByteSource& source) {
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

std::uint64_t durable_beyond(SegmentId segment, const SegmentSalt& salt, const ByteSource& source,
                             std::uint64_t from) {
  return look_ahead(segment, salt, source, from).durable;
}

void recover_last_segment(SegmentId segment, const SegmentSalt& salt, const ByteSource& source,
                          const ScanHooks& hooks, Recovery& recovery, IndexBuilder& builder) {
  recovery.tail_salt = salt;
  BatchReader(segment, salt, true, source, hooks, recovery, builder).run();
}

void recover_segment(SegmentId segment, const std::optional<SegmentSalt>& salt,
                     const ByteSource& source, const ScanHooks& hooks, Recovery& recovery,
                     IndexBuilder& builder) {
  BatchReader(segment, salt, false, source, hooks, recovery, builder).run();
}

}  // namespace vmshadow::store
