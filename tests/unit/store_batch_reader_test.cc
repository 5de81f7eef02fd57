// Where a journal ends whose last segment's file was another segment before: nothing of that
// counts, be it as whole as it was and in the right place, and nothing of its own is lost. What is
// damaged of a journal segment costs no more than it must, and nothing that was there before can do
// harm in its place.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <set>
#include <string>
#include <vector>

#include "format/skeleton.h"
#include "format/store_state.h"
#include "store/batch_reader.h"

namespace vmshadow::store {
namespace {

using LifeBytes = std::vector<std::byte>;
using format::JournalPosition;
using format::RecordType;
using testing::HasSubstr;
using testing::UnorderedElementsAre;

constexpr std::size_t kBlock = 4096;
constexpr SegmentId kOld{3};
constexpr SegmentId kNow{9};

format::SegmentSalt salt_of(int seed) {
  format::SegmentSalt salt;
  for (std::size_t i = 0; i < salt.size(); ++i) salt[i] = static_cast<std::byte>(seed + i);
  return salt;
}
const format::SegmentSalt kOldSalt = salt_of(1);
const format::SegmentSalt kNowSalt = salt_of(101);

template <class Body>
LifeBytes life_record(const format::RecordHead& head, const Body& content) {
  LifeBytes body;
  format::append_body(body, content);
  LifeBytes record;
  format::append_record(record, head, body);
  record.resize(record.size() + format::alignment_gap(record.size()));
  return record;
}

/// A grant for a VM of this name: whoever counts it knows that VM.
LifeBytes grant_record(const std::string& vm) {
  return life_record({RecordType::grant, 0, vm_id(vm), Generation{1}, {}},
                     format::Grant{WallTime{1}, vm, {}});
}
LifeBytes replace_record(SegmentId removed) {
  return life_record({RecordType::replace, 0, {}, {}, {}}, format::Replace{{removed}, {}, {}});
}
LifeBytes list_record(SegmentId only) {
  return life_record({RecordType::segment_list, 0, {}, {}, {}},
                     format::SegmentList{{{only, 0, format::SegmentKind::journal}}, 0});
}
LifeBytes state_record(const std::string& vm, std::uint64_t version, Epoch next) {
  format::VmState state;
  state.version = version;
  state.vm_name = vm;
  state.next_epoch = next;
  return life_record({RecordType::vm_state, 0, vm_id(vm), Generation{1}, {}}, state);
}
LifeBytes commit_record(const std::string& vm, Epoch epoch) {
  return life_record({RecordType::commit, 0, vm_id(vm), Generation{1}, epoch}, format::Commit{});
}

/// A segment's file, written batch by batch. A second life goes over the first.
class RecycledFile {
 public:
  /// Begins a life: head and opening.
  void begin(SegmentId segment, const format::SegmentSalt& salt) {
    segment_ = segment;
    salt_ = salt;
    put(0, format::encode_segment_head({{}, segment, {}, format::SegmentKind::journal, salt}));
    end_ = durable_ = kBlock;
    add({});
  }
  /// Adds a batch that grants these VMs a generation; the one after the next says that it is
  /// durable.
  void add(const std::vector<std::string>& vms) {
    LifeBytes batch;
    for (const std::string& vm : vms) format::append_bytes(batch, grant_record(vm));
    add_batch(std::move(batch));
  }
  void add_batch(LifeBytes batch) {
    const format::Mark mark{{segment_, SegmentOffset{end_}},
                            salt_,
                            format::chain_records(0, batch),
                            {segment_, SegmentOffset{durable_}}};
    format::append_mark(batch, end_ + batch.size(), kBlock, mark);
    put(end_, batch);
    begins_.push_back(end_);
    end_ += batch.size();
    durable_ = begins_.back();
  }
  void put(std::uint64_t offset, ByteSpan bytes) {
    if (file_.size() < offset + bytes.size()) file_.resize(offset + bytes.size());
    std::copy(bytes.begin(), bytes.end(), file_.begin() + static_cast<std::ptrdiff_t>(offset));
  }
  void flip(std::uint64_t offset) { file_[offset] ^= std::byte{4}; }
  /// Ends the life as a segment that is full does.
  void seal() {
    format::SkeletonWriter skeleton;
    const format::JournalPosition at{segment_, SegmentOffset{end_}};
    put(end_, format::encode_segment_end(segment_, end_, skeleton, at, salt_));
  }
  void cut(std::uint64_t bytes) { file_.resize(bytes); }

  [[nodiscard]] std::uint64_t end() const { return end_; }
  /// Where the batches of this life begin, the opening's first.
  [[nodiscard]] const std::vector<std::uint64_t>& begins() const { return begins_; }
  void forget_begins() { begins_.clear(); }
  [[nodiscard]] ByteSpan bytes() const { return file_; }
  [[nodiscard]] const format::SegmentSalt& salt() const { return salt_; }

 private:
  LifeBytes file_;
  SegmentId segment_;
  format::SegmentSalt salt_{};
  std::uint64_t end_ = 0;
  std::uint64_t durable_ = 0;
  std::vector<std::uint64_t> begins_;
};

struct RecoveredTail {
  Recovery recovery;
  std::vector<std::string> vms;
  std::vector<Damage> damage;
  std::set<SegmentId> expected;
  std::set<SegmentId> removed;

  [[nodiscard]] std::string damage_text() const {
    std::string text;
    for (const Damage& d : damage) text += d.text() + "\n";
    return text;
  }
};

/// A segment before it says that there are it and this one.
constexpr SegmentId kBefore{8};

RecoveredTail recover_from(const ByteSource& source, const format::SegmentSalt& salt,
                           bool is_last = true) {
  RecoveredTail out;
  out.recovery.index = std::make_shared<JournalIndex>();
  EpochAssembler assembler;
  IndexBuilder builder(*out.recovery.index, assembler);
  builder.begin_segment(kBefore);
  builder.begin_segment(kNow);
  if (is_last) {
    recover_last_segment(kNow, salt, source, {}, out.recovery, builder);
  } else {
    recover_segment(kNow, salt, source, {}, out.recovery, builder);
  }
  builder.finish();
  for (const auto& [id, entry] : builder.expected()) out.expected.insert(id);
  out.removed = builder.removed();
  for (const VmId& id : out.recovery.index->ids()) {
    out.vms.push_back(out.recovery.index->name_of(id));
  }
  out.damage = builder.damage();
  return out;
}

RecoveredTail recover_tail(const RecycledFile& file, bool is_last = true) {
  return recover_from(MemorySource(file.bytes()), file.salt(), is_last);
}

/// Eight batches of a former life, and the opening of the present one.
RecycledFile recycled() {
  RecycledFile file;
  file.begin(kOld, kOldSalt);
  for (int i = 0; i < 8; ++i) file.add({"stale" + std::to_string(i)});
  file.forget_begins();
  file.begin(kNow, kNowSalt);
  return file;
}

TEST(LastSegmentTest, WhatTheFileHeldBeforeDoesNotCount) {
  RecycledFile file = recycled();
  file.add({"a", "b"});
  file.add({"c"});
  // What follows is a whole batch, and stands where the next one would.
  const RecoveredTail out = recover_tail(file);
  EXPECT_THAT(out.vms, UnorderedElementsAre("a", "b", "c"));
  EXPECT_EQ(out.recovery.tail, (JournalPosition{kNow, SegmentOffset{file.end()}}));
  EXPECT_TRUE(out.damage.empty());
  EXPECT_FALSE(out.recovery.tail_is_damaged);
}

TEST(LastSegmentTest, ASegmentThatWasNeverUsedHasItsOpening) {
  const RecycledFile file = recycled();
  const RecoveredTail out = recover_tail(file);
  EXPECT_TRUE(out.vms.empty());
  EXPECT_FALSE(out.recovery.torn_segment);
  EXPECT_EQ(out.recovery.tail, (JournalPosition{kNow, SegmentOffset{file.end()}}));
}

TEST(LastSegmentTest, ATornBatchDoesNotCountInPart) {
  // Each block of the last batch is there or is what the file held before.
  std::vector<std::string> many;
  for (int i = 0; i < 100; ++i) many.push_back("new" + std::to_string(i));
  RecycledFile whole = recycled();
  whole.add({"a"});
  const std::uint64_t begin = whole.end();
  const RecycledFile before = whole;
  whole.add(many);
  const std::uint64_t blocks = (whole.end() - begin) / kBlock;
  ASSERT_GT(blocks, 2u);
  for (std::uint64_t there = 0; there + 1 < std::uint64_t{1} << blocks; ++there) {
    RecycledFile torn = before;
    for (std::uint64_t block = 0; block < blocks; ++block) {
      if ((there >> block & 1) == 0) continue;
      torn.put(begin + block * kBlock, whole.bytes().subspan(begin + block * kBlock, kBlock));
    }
    const RecoveredTail out = recover_tail(torn);
    EXPECT_THAT(out.vms, UnorderedElementsAre("a")) << there;
    EXPECT_EQ(out.recovery.tail->offset.value, begin) << there;
    EXPECT_TRUE(out.recovery.torn_tail) << there;
    EXPECT_TRUE(out.damage.empty()) << there;
  }
  EXPECT_EQ(recover_tail(whole).vms.size(), many.size() + 1);
}

TEST(LastSegmentTest, AStaleRecordInABatchIsSeenByItsMark) {
  // The block with the stale record was not written; the mark was.
  RecycledFile file = recycled();
  file.add({"a"});
  const std::uint64_t begin = file.end();
  file.add({"mine", "yours"});
  const LifeBytes stale = grant_record("hers");
  ASSERT_EQ(stale.size(), grant_record("mine").size());
  file.put(begin, stale);
  const RecoveredTail out = recover_tail(file);
  EXPECT_THAT(out.vms, UnorderedElementsAre("a"));
  EXPECT_EQ(out.recovery.tail->offset.value, begin);
  // Once it was durable, it is damage: the disk lost what it had called durable.
  file.add({"c"});
  file.add({"d"});
  const RecoveredTail later = recover_tail(file);
  EXPECT_EQ(later.recovery.tail->offset.value, file.end());
  ASSERT_EQ(later.damage.size(), 1u);
  EXPECT_THAT(later.damage[0].text(), HasSubstr("not those that the batch's mark was made for"));
  EXPECT_TRUE(later.recovery.tail_is_damaged);
}

TEST(LastSegmentTest, NobodyForgesAMarkWhoDoesNotKnowTheSalt) {
  // A guest that guesses the segment's number and where its journal will end.
  RecycledFile file = recycled();
  file.add({"a"});
  const std::uint64_t begin = file.end();
  for (const auto& [segment, salt] :
       {std::pair{kNow, kOldSalt}, std::pair{kNow, format::SegmentSalt{}},
        std::pair{kOld, kNowSalt}}) {
    RecycledFile forged = file;
    LifeBytes batch = grant_record("forged");
    const format::Mark mark{{segment, SegmentOffset{begin}},
                            salt,
                            format::chain_records(0, batch),
                            {segment, SegmentOffset{begin}}};
    format::append_mark(batch, begin + batch.size(), kBlock, mark);
    forged.put(begin, batch);
    const RecoveredTail out = recover_tail(forged);
    EXPECT_THAT(out.vms, UnorderedElementsAre("a"));
    EXPECT_EQ(out.recovery.tail->offset.value, begin);
  }
}

TEST(LastSegmentTest, ABatchCopiedToAnotherPlaceDoesNotCount) {
  RecycledFile file = recycled();
  file.add({"a"});
  const std::uint64_t begin = file.begins().back();
  const LifeBytes copy(file.bytes().begin() + static_cast<std::ptrdiff_t>(begin),
                       file.bytes().begin() + static_cast<std::ptrdiff_t>(file.end()));
  const std::uint64_t end = file.end();
  file.put(end, copy);
  EXPECT_EQ(recover_tail(file).recovery.tail->offset.value, end);
}

TEST(LastSegmentTest, DamageBeforeTheDurableEndIsNoTornTail) {
  RecycledFile file = recycled();
  for (const char* vm : {"a", "b", "c", "d"}) file.add({vm});
  const std::uint64_t record_of_b = file.begins()[2];
  const std::uint64_t mark_of_b = record_of_b + grant_record("b").size();
  for (const std::uint64_t at : {record_of_b + 70, record_of_b + 20, mark_of_b + 70}) {
    RecycledFile damaged = file;
    damaged.flip(at);
    const RecoveredTail out = recover_tail(damaged);
    EXPECT_EQ(out.recovery.tail->offset.value, file.end()) << at;
    EXPECT_TRUE(out.recovery.tail_is_damaged) << at;
    EXPECT_EQ(out.damage.size(), 1u) << at;
    EXPECT_THAT(out.vms, testing::IsSupersetOf({"a", "c", "d"})) << at;
  }
  // Of the last batch nobody says that it was durable.
  RecycledFile torn = file;
  torn.flip(file.begins().back() + 70);
  const RecoveredTail out = recover_tail(torn);
  EXPECT_TRUE(out.recovery.torn_tail);
  EXPECT_EQ(out.recovery.tail->offset.value, file.begins().back());
}

TEST(LastSegmentTest, TheSaltIsFoundWithoutAHead) {
  RecycledFile file = recycled();
  for (const char* vm : {"a", "b", "c"}) file.add({vm});
  const MemorySource source(file.bytes());
  EXPECT_EQ(find_salt(kNow, source), kNowSalt);
  EXPECT_FALSE(find_salt(SegmentId{77}, source));
  EXPECT_GT(durable_beyond(kNow, kNowSalt, source, kBlock), kBlock);
}

// What an earlier life said of the store would have segments taken for such that do not count, and
// removed.
TEST(LastSegmentTest, WhatAnEarlierLifeSaidOfTheStoreDoesNotCount) {
  const std::pair<LifeBytes, LifeBytes> pairs[] = {
      // own, and stale
      {replace_record(SegmentId{6}), replace_record(kBefore)},
      {list_record(kBefore), list_record(kNow)},
      {state_record("a", 5, Epoch{7}), state_record("a", 9, Epoch{2})},
  };
  for (const auto& [own, stale] : pairs) {
    ASSERT_EQ(own.size(), stale.size());
    RecycledFile file = recycled();
    file.add({"a"});
    const std::uint64_t begin = file.end();
    file.add_batch(own);
    file.add({"b"});
    file.add({"c"});
    file.put(begin, stale);  // the disk lost what it had called durable
    for (const bool is_last : {true, false}) {
      RecycledFile whole = file;
      if (!is_last) whole.cut(file.end());
      const RecoveredTail out = recover_tail(whole, is_last);
      EXPECT_TRUE(out.removed.empty());
      EXPECT_THAT(out.expected, UnorderedElementsAre(kBefore, kNow));
      EXPECT_EQ(out.damage.size(), 2u) << out.damage_text();
      EXPECT_THAT(out.damage_text(), HasSubstr("not those that the batch's mark was made for"));
      EXPECT_THAT(out.damage_text(), HasSubstr("what the file held before"));
      EXPECT_THAT(out.vms, UnorderedElementsAre("a", "b", "c"));
      EXPECT_EQ(out.recovery.tail_is_damaged, is_last);
    }
  }
}

TEST(LastSegmentTest, AMarkProvesARecordWhoseNeighboursBodyIsDamaged) {
  RecycledFile file = recycled();
  const std::uint64_t begin = file.end();
  LifeBytes batch = grant_record("a");
  format::append_bytes(batch, replace_record(SegmentId{6}));
  const std::size_t replace_at = grant_record("a").size();
  file.add_batch(batch);
  file.add({"b"});
  file.add({"c"});
  RecycledFile body = file;
  body.flip(begin + 70);
  const RecoveredTail proven = recover_tail(body);
  EXPECT_THAT(proven.removed, UnorderedElementsAre(SegmentId{6}));
  EXPECT_EQ(proven.damage.size(), 1u) << proven.damage_text();
  EXPECT_TRUE(proven.recovery.tail_is_damaged);
  // Without the prefix, or the mark, nothing says that the replace record is this segment's.
  for (const std::uint64_t at : {std::uint64_t{20}, replace_at + replace_record({}).size() + 70}) {
    RecycledFile doubtful = file;
    doubtful.flip(begin + at);
    const RecoveredTail out = recover_tail(doubtful);
    EXPECT_TRUE(out.removed.empty()) << at;
    EXPECT_EQ(out.damage.size(), 2u) << out.damage_text();
    EXPECT_THAT(out.vms, testing::IsSupersetOf({"b", "c"}));
  }
}

TEST(LastSegmentTest, AnEpochOfAnEarlierLifeIsToldByItsNumber) {
  JournalIndex index;
  EpochAssembler assembler;
  IndexBuilder builder(index, assembler);
  builder.begin_segment(kNow);
  const auto head = [](const std::string& vm, std::uint64_t epoch) {
    return format::RecordHead{RecordType::zero_pages, 0, vm_id(vm), Generation{1}, Epoch{epoch}};
  };
  EXPECT_TRUE(builder.may_come(head("a", 0)));
  format::VmState state;
  state.vm_name = "a";
  state.next_epoch = Epoch{7};
  assembler.add_state(vm_id("a"), Generation{1}, state);
  EXPECT_FALSE(builder.may_come(head("a", 6)));
  EXPECT_TRUE(builder.may_come(head("a", 7)));
  const LifeBytes commit = commit_record("a", Epoch{9});
  const auto prefix = format::decode_prefix(commit);
  ASSERT_TRUE(prefix);
  builder.add({kNow, SegmentOffset{kBlock}}, *prefix,
              ByteSpan(commit).subspan(format::kRecordPrefixBytes, prefix->body_bytes));
  EXPECT_FALSE(builder.may_come(head("a", 9)));
  EXPECT_TRUE(builder.may_come(head("a", 10)));
}

TEST(LastSegmentTest, CommitsThatAreCutOffWithADamagedMarkAreNamed) {
  RecycledFile file;
  file.begin(kOld, kOldSalt);
  for (std::uint64_t epoch = 1; epoch < 9; ++epoch) {
    LifeBytes batch = commit_record("a", Epoch{epoch});
    format::append_bytes(batch, commit_record("b", Epoch{epoch}));
    file.add_batch(batch);
  }
  file.begin(kNow, kNowSalt);
  file.add_batch(state_record("b", 1, Epoch{9}));
  file.add_batch(commit_record("a", Epoch{9}));
  const std::uint64_t begin = file.end();
  file.add_batch(commit_record("a", Epoch{10}));
  const std::uint64_t mark = begin + commit_record("a", Epoch{10}).size();
  for (const std::uint64_t at : {mark + 20, mark + 100, mark + 2000}) {
    RecycledFile damaged = file;
    damaged.flip(at);
    const RecoveredTail out = recover_tail(damaged);
    EXPECT_EQ(out.recovery.tail->offset.value, begin);
    ASSERT_TRUE(out.recovery.torn_tail);
    // Not those of the earlier life, which are whole behind it.
    EXPECT_THAT(out.recovery.torn_tail->commits,
                testing::ElementsAre("epoch 10 of VM '" + vm_id("a").hex() + "'"));
  }
  // Where nothing is cut off but what was there before, nothing is named.
  const RecoveredTail whole = recover_tail(file);
  EXPECT_EQ(whole.recovery.tail->offset.value, file.end());
  EXPECT_TRUE(whole.recovery.torn_tail->commits.empty());
}

TEST(LastSegmentTest, ASealSaysThatAllBeforeItWasDurable) {
  RecycledFile file = recycled();
  file.add({"a"});
  const std::uint64_t begin = file.end();
  file.add({"b"});
  file.seal();
  for (const std::uint64_t at : {begin + 70, begin + 20, begin + grant_record("b").size() + 20,
                                 begin + grant_record("b").size() + 70}) {
    RecycledFile damaged = file;
    damaged.flip(at);
    const MemorySource source(damaged.bytes());
    EXPECT_EQ(durable_beyond(kNow, kNowSalt, source, kBlock), file.end());
    const RecoveredTail out = recover_tail(damaged);
    EXPECT_EQ(out.recovery.tail->offset.value, file.end()) << at;
    EXPECT_EQ(out.damage.size(), 1u) << at << ": " << out.damage_text();
    EXPECT_TRUE(out.recovery.tail_is_damaged) << at;
    if (at > begin + grant_record("b").size()) {
      EXPECT_THAT(out.vms, testing::Contains("b")) << at;
    }
  }
}

/// A file as who reads it beside its writer may see it: the first read came too early.
class LiveSource final : public ByteSource {
 public:
  LiveSource(ByteSpan early, ByteSpan now) : early_(early), now_(now) {}
  std::uint64_t bytes() const override { return now_.bytes(); }
  std::size_t read_at(std::uint64_t offset, MutableByteSpan into) const override {
    return (reads_++ == 0 ? early_ : now_).read_at(offset, into);
  }

 private:
  MemorySource early_, now_;
  mutable int reads_ = 0;
};

TEST(LastSegmentTest, WhatIsWrittenWhileItIsReadIsNoDamage) {
  RecycledFile now = recycled();
  now.add({"a"});
  RecycledFile early = now;
  const std::uint64_t begin = now.end();
  for (const char* vm : {"b", "c", "d", "e"}) now.add({vm});
  // Nothing of b's batch, its mark alone, all but its mark.
  const LifeBytes b(now.bytes().begin() + static_cast<std::ptrdiff_t>(begin),
                    now.bytes().begin() + static_cast<std::ptrdiff_t>(begin + kBlock));
  for (const auto& [from, to] : {std::pair<std::size_t, std::size_t>{0, 0},
                                 {grant_record("b").size(), b.size()},
                                 {0, grant_record("b").size()}}) {
    RecycledFile seen = early;
    seen.put(now.end() - 1, ByteSpan(b).first(1));  // as long as the file is
    seen.put(begin + from, ByteSpan(b).subspan(from, to - from));
    const RecoveredTail out = recover_from(LiveSource(seen.bytes(), now.bytes()), kNowSalt);
    EXPECT_EQ(out.damage_text(), "");
    EXPECT_FALSE(out.recovery.tail_is_damaged);
    EXPECT_THAT(out.vms, UnorderedElementsAre("a", "b", "c", "d", "e"));
    EXPECT_EQ(out.recovery.tail->offset.value, now.end());
  }
}

}  // namespace
}  // namespace vmshadow::store
