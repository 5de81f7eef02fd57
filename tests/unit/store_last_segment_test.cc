// Where a journal ends whose last segment's file was another segment before: nothing of that
// counts, be it as whole as it was and in the right place, and nothing of its own is lost.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "store/last_segment.h"

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

/// A grant for a VM of this name: whoever counts it knows that VM.
LifeBytes grant_record(const std::string& vm) {
  LifeBytes body;
  format::append_body(body, format::Grant{WallTime{1}, vm, {}});
  LifeBytes record;
  format::append_record(record, {RecordType::grant, 0, vm_id(vm), Generation{1}, {}}, body);
  record.resize(record.size() + format::alignment_gap(record.size()));
  return record;
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
};

RecoveredTail recover_tail(const RecycledFile& file) {
  RecoveredTail out;
  out.recovery.index = std::make_shared<JournalIndex>();
  EpochAssembler assembler;
  IndexBuilder builder(*out.recovery.index, assembler);
  const MemorySource source(file.bytes());
  builder.begin_segment(kNow);
  recover_last_segment(kNow, file.salt(), source, {}, out.recovery, builder);
  builder.finish();
  for (const VmId& id : out.recovery.index->ids()) {
    out.vms.push_back(out.recovery.index->name_of(id));
  }
  out.damage = builder.damage();
  return out;
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

}  // namespace
}  // namespace vmshadow::store
