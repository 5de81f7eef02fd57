// What a store says it keeps, and how a full segment ends: what goes in comes out, every bound,
// order and reserved bit is checked, and a count is believed only after the bytes are there.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "format/epoch_records.h"
#include "format/skeleton.h"
#include "format/store_state.h"

namespace vmshadow::format {
namespace {

using Bytes = std::vector<std::byte>;
using testing::HasSubstr;

const JournalPosition kDurable{SegmentId{4}, SegmentOffset{8192}};

template <class T>
Bytes body_of(const T& value) {
  Bytes body;
  append_body(body, value);
  return body;
}

template <class Integer>
Bytes with(Bytes body, std::size_t offset, Integer value) {
  EXPECT_LE(offset + sizeof value, body.size());
  std::memcpy(body.data() + offset, &value, sizeof value);
  return body;
}

/// Every proper prefix of a body, and the body with a byte more, must be refused without harm.
template <class Decode>
void expect_length_is_exact(const Bytes& body, const Decode& decode) {
  ASSERT_TRUE(decode(body)) << decode(body).error().message;
  for (std::size_t n = 0; n < body.size(); ++n) {
    EXPECT_FALSE(decode(ByteSpan(body).first(n))) << n << " bytes";
  }
  Bytes longer = body;
  longer.push_back(std::byte{0});
  EXPECT_FALSE(decode(longer));
}

template <class Decode>
void expect_refused(const Bytes& body, const Decode& decode, const std::string& words) {
  const auto result = decode(body);
  ASSERT_FALSE(result) << "expected: " << words;
  EXPECT_EQ(result.error().code, Errc::corrupt);
  EXPECT_THAT(result.error().message, HasSubstr("malformed"));
  EXPECT_THAT(result.error().message, HasSubstr(words));
}

VmState some_state() {
  VmState state;
  state.version = 7;
  state.vm_name = "web1";
  state.next_epoch = Epoch{43};
  state.window_s = 600;
  state.minutely_s = 3600;
  state.hourly_s = 86'400;
  state.daily_s = kReachSecondsMax;
  state.own_policy = true;
  state.quota_bytes = std::uint64_t{1} << 40;
  state.kept = {{Epoch{12}, Epoch{12}}, {Epoch{13}, Epoch{20}}, {Epoch{30}, Epoch{42}}};
  state.pins = {Epoch{12}, Epoch{31}};
  state.durable = kDurable;
  return state;
}

TEST(VmStateTest, RoundTripsAndBounds) {
  const Bytes body = body_of(some_state());
  expect_length_is_exact(body, decode_vm_state);
  EXPECT_EQ(*decode_vm_state(body), some_state());
  for (std::size_t reach = 16; reach < 48; reach += 8) {
    expect_refused(with(body, reach, kReachSecondsMax + 1), decode_vm_state, "too far back");
  }
  expect_refused(with(body, 56, std::uint32_t{kKeptRangesMax + 1}), decode_vm_state, "too many");
  expect_refused(with(body, 60, std::uint32_t{kPinsMax + 1}), decode_vm_state, "too many");
  expect_refused(with(body, 56, std::uint32_t{kKeptRangesMax}), decode_vm_state, "ends inside");
  expect_refused(with(body, 60, std::uint32_t{kPinsMax}), decode_vm_state, "ends inside its pins");
  expect_refused(with(body, 56, std::uint32_t{0}), decode_vm_state, "vm_state");
  expect_refused(with(body, 60, std::uint32_t{1}), decode_vm_state, "does not match its counts");
  expect_refused(with(body, 64, std::uint16_t{0}), decode_vm_state, "does not match its counts");
  expect_refused(with(body, 64, std::uint16_t{0xffff}), decode_vm_state, "does not match");
  for (int bit = 1; bit < 16; ++bit) {
    const auto flags = static_cast<std::uint16_t>(1u << bit);
    expect_refused(with(body, 66, flags), decode_vm_state, "reserved bits");
  }
  for (std::size_t at = 68; at < 72; ++at) {
    expect_refused(with(body, at, std::uint8_t{1}), decode_vm_state, "reserved bits");
  }
  expect_refused(with(body, body.size() - 4, '/'), decode_vm_state, "not a VM's name");
}

TEST(VmStateTest, ItsEpochsRise) {
  constexpr std::size_t ranges = 88;
  constexpr std::size_t pins = ranges + 3 * 16;
  const Bytes body = body_of(some_state());
  const auto number = [](std::uint64_t value) { return value; };
  expect_refused(with(body, ranges, number(13)), decode_vm_state, "ranges do not rise");
  expect_refused(with(body, ranges + 8, number(13)), decode_vm_state, "ranges do not rise");
  expect_refused(with(body, ranges + 40, number(43)), decode_vm_state, "ranges do not rise");
  expect_refused(with(body, 8, number(42)), decode_vm_state, "ranges do not rise");
  expect_refused(with(body, pins, number(31)), decode_vm_state, "pins do not rise");
  expect_refused(with(body, pins, number(32)), decode_vm_state, "pins do not rise");
}

TEST(VmStateTest, TheSmallestAndTheLargest) {
  VmState state;
  state.vm_name = "a";
  EXPECT_EQ(*decode_vm_state(body_of(state)), state);
  EXPECT_EQ(body_of(state).size(), sizeof(VmStateBytes) + 1);
  for (std::uint64_t i = 0; i < kKeptRangesMax; ++i) {
    state.kept.push_back({Epoch{2 * i}, Epoch{2 * i}});
  }
  for (std::uint64_t i = 0; i < kPinsMax; ++i) state.pins.push_back(Epoch{2 * i});
  state.next_epoch = Epoch{2 * kKeptRangesMax};
  state.vm_name = std::string(kVmNameBytesMax, 'x');
  const Bytes body = body_of(state);
  EXPECT_LE(body.size(), kRecordBodyBytesMax);
  EXPECT_EQ(*decode_vm_state(body), state);
}

TEST(VmStateTest, KeepsWhatItsRangesHoldAndAllThatIsNewer) {
  const VmState state = some_state();
  for (const std::uint64_t epoch : {12, 13, 20, 30, 41, 42, 43, 44, 1'000'000}) {
    EXPECT_TRUE(state.keeps(Epoch{epoch})) << epoch;
  }
  for (const std::uint64_t epoch : {0, 11, 21, 29})
    EXPECT_FALSE(state.keeps(Epoch{epoch})) << epoch;
  VmState nothing;
  nothing.next_epoch = Epoch{5};
  EXPECT_FALSE(nothing.keeps(Epoch{4}));
  EXPECT_TRUE(nothing.keeps(Epoch{5}));
}

const SegmentEntry kArchive{SegmentId{2}, 1'048'576, SegmentKind::archive};
const SegmentEntry kJournal{SegmentId{3}, 0, SegmentKind::journal};

/// The fields of a segment's entry that stands at `at`.
template <class Decode>
void expect_entry_is_checked(const Bytes& body, std::size_t at, const Decode& decode,
                             const std::string& words) {
  expect_refused(with(body, at, std::uint64_t{0}), decode, words);
  for (const int kind : {0, 3, 0x101}) {
    expect_refused(with(body, at + 16, static_cast<std::uint16_t>(kind)), decode, words);
  }
  for (std::size_t reserved = at + 18; reserved < at + 24; ++reserved) {
    expect_refused(with(body, reserved, std::uint8_t{1}), decode, words);
  }
}

TEST(SegmentListTest, RoundTripsAndBounds) {
  const SegmentList list{{kArchive, kJournal}, 0x01020304};
  const Bytes body = body_of(list);
  expect_length_is_exact(body, decode_segment_list);
  EXPECT_EQ(*decode_segment_list(body), list);
  EXPECT_EQ(*decode_segment_list(body_of(SegmentList{})), SegmentList{});
  const std::string words = "not segments in rising order";
  expect_entry_is_checked(body, 8, decode_segment_list, words);
  expect_entry_is_checked(body, 32, decode_segment_list, words);
  expect_refused(with(body, 8, std::uint64_t{3}), decode_segment_list, words);
  for (const std::uint32_t count : {0u, 1u, 3u, 0xffffffffu}) {
    expect_refused(with(body, 0, count), decode_segment_list, words);
  }
}

TEST(SegmentListTest, TheLargestFits) {
  SegmentList list;
  for (std::uint64_t i = 1; i <= kSegmentEntriesMax; ++i) {
    list.segments.push_back({SegmentId{i}, i, SegmentKind::archive});
  }
  const Bytes body = body_of(list);
  EXPECT_LE(body.size(), kRecordBodyBytesMax);
  EXPECT_EQ(*decode_segment_list(body), list);
}

TEST(ReplaceTest, RoundTripsAndBounds) {
  SegmentEntry second = kArchive;
  second.segment = SegmentId{9};
  const Replace replace{{SegmentId{1}, SegmentId{5}}, {kArchive, second}, kDurable};
  const Bytes body = body_of(replace);
  expect_length_is_exact(body, decode_replace);
  EXPECT_EQ(*decode_replace(body), replace);
  EXPECT_EQ(*decode_replace(body_of(Replace{})), Replace{});
  constexpr std::size_t removed = 24;
  constexpr std::size_t added = removed + 2 * 8;
  const auto number = [](std::uint64_t value) { return value; };
  for (const std::uint64_t id : {0, 5, 6}) {
    expect_refused(with(body, removed, number(id)), decode_replace, "removes does not rise");
  }
  expect_refused(with(body, removed + 8, number(9)), decode_replace, "removes them too");
  expect_refused(with(body, added + 16, std::uint16_t{1}), decode_replace, "not archives");
  const std::string words = "not segments in rising order";
  expect_entry_is_checked(body, added, decode_replace, words);
  expect_refused(with(body, added, number(9)), decode_replace, words);
  expect_refused(with(body, 0, std::uint32_t{0xffffffff}), decode_replace, "too short");
  expect_refused(with(body, 4, std::uint32_t{0xffffffff}), decode_replace, words);
  expect_refused(with(body, 4, std::uint32_t{1}), decode_replace, words);
}

TEST(ArchivedEpochTest, RoundTripsAndBounds) {
  const ArchivedEpoch epoch{WallTime{-5}, WallTime{-6}, 8, 5000, kDeviceStateBytesMax, true};
  const Bytes body = body_of(epoch);
  expect_length_is_exact(body, decode_archived_epoch);
  EXPECT_EQ(*decode_archived_epoch(body), epoch);
  expect_refused(with(body, 32, std::uint64_t{kDeviceStateBytesMax + 1}), decode_archived_epoch,
                 "too much device state");
  for (int bit = 1; bit < 64; ++bit) {
    expect_refused(with(body, 40, std::uint64_t{1} << bit), decode_archived_epoch, "reserved bits");
  }
  EXPECT_FALSE(decode_archived_epoch(with(body, 40, std::uint64_t{0}))->full);
}

TEST(LossTest, RoundTripsAndBounds) {
  const Loss loss{{SegmentId{7}, SegmentOffset{4096}}, 12, LossKind::base, "a bad body"};
  const Bytes body = body_of(loss);
  expect_length_is_exact(body, decode_loss);
  EXPECT_EQ(*decode_loss(body), loss);
  const Loss wordy{{}, 0, LossKind::own, std::string(kLostTextBytesMax, 'x')};
  EXPECT_EQ(*decode_loss(body_of(wordy)), wordy);
  for (const int kind : {0, 3}) {
    expect_refused(with(body, 24, static_cast<std::uint16_t>(kind)), decode_loss, "of a kind");
  }
  expect_refused(with(body, 26, std::uint16_t{kLostTextBytesMax + 1}), decode_loss, "its text");
  expect_refused(with(body, 28, std::uint32_t{1}), decode_loss, "reserved bits");
}

Bytes record_of(RecordType type, const Bytes& body) {
  Bytes out;
  append_record(out, {type, 5, vm_id("web1"), Generation{3}, Epoch{42}}, body);
  return out;
}

Bytes group_body(std::size_t pages) {
  Bytes body;
  std::vector<PageKey> keys;
  for (std::uint64_t i = 0; i < pages; ++i) keys.push_back({BlockIndex{1}, PageNumber{i}});
  append_page_group_body(body, Codec::raw, keys, std::vector<std::uint64_t>(pages, 1),
                         Bytes(pages * kPageBytes, std::byte{7}));
  return body;
}

Bytes zero_runs_body(std::size_t runs) {
  Bytes body;
  std::vector<ZeroRun> list;
  for (std::uint64_t i = 0; i < runs; ++i) list.push_back({{{}, PageNumber{2 * i}}, 1});
  append_zero_pages_body(body, list);
  return body;
}

Bytes machine_body(std::size_t json_bytes) {
  MachineDescription machine;
  machine.json.assign(json_bytes, ' ');
  Bytes body;
  append_machine_body(body, machine);
  return body;
}

Bytes epoch_end_body() {
  Bytes body;
  append_epoch_end_body(body, {});
  return body;
}

/// One record of each type a segment can hold, the bodies that are too large to stand twice, and
/// pads and marks, which do not count.
std::vector<Bytes> all_records() {
  return {
      record_of(RecordType::segment_list, body_of(SegmentList{{kJournal}, 1})),
      record_of(RecordType::vm_state, body_of(some_state())),
      record_of(RecordType::grant, body_of(Grant{{}, "web1", kDurable})),
      record_of(RecordType::machine, machine_body(30)),
      record_of(RecordType::machine, machine_body(600'000)),
      record_of(RecordType::page_group, group_body(1)),
      record_of(RecordType::pad, Bytes(16)),
      record_of(RecordType::page_group, group_body(kGroupPagesMax)),
      record_of(RecordType::page_group, Bytes(7, std::byte{0xff})),
      record_of(RecordType::page_group, Bytes(100, std::byte{0xff})),
      record_of(RecordType::zero_pages, zero_runs_body(3)),
      record_of(RecordType::zero_pages, zero_runs_body(kZeroRunsMax)),
      record_of(RecordType::device_state, Bytes(1 << 20, std::byte{1})),
      record_of(RecordType::device_state, {}),
      record_of(RecordType::pad, Bytes(4000)),
      record_of(RecordType::mark, Bytes(56)),
      record_of(RecordType::epoch_end, epoch_end_body()),
      record_of(RecordType::commit, body_of(Commit{})),
      record_of(RecordType::replace, body_of(Replace{{SegmentId{1}}, {kArchive}, {}})),
      record_of(RecordType::archived_epoch, body_of(ArchivedEpoch{})),
      record_of(RecordType::loss, body_of(Loss{{}, 0, LossKind::own, "a bad body"})),
  };
}

struct Placed {
  std::uint64_t offset{};
  Bytes record;
};

/// Puts the records one behind the other from the segment's head on.
std::vector<Placed> placed(const std::vector<Bytes>& records, SkeletonWriter& writer) {
  std::vector<Placed> all;
  std::uint64_t offset = kSegmentHeadBytes;
  for (const Bytes& record : records) {
    writer.add(offset, record);
    const RecordType type = decode_prefix(record)->head.type;
    if (type != RecordType::pad && type != RecordType::mark) all.push_back({offset, record});
    offset += record.size();
    offset += alignment_gap(offset);
  }
  return all;
}

void expect_entry_is(const SkeletonEntry& entry, const Placed& expected) {
  const auto prefix = decode_prefix(expected.record);
  const ByteSpan body = ByteSpan(expected.record).subspan(kRecordPrefixBytes);
  EXPECT_EQ(entry.offset, expected.offset);
  EXPECT_EQ(entry.prefix.prefix_checksum, prefix->prefix_checksum);
  EXPECT_EQ(entry.prefix.head.type, prefix->head.type);
  EXPECT_EQ(entry.prefix.body_bytes, body.size());
  const std::size_t meta_bytes = skeleton_meta_bytes(prefix->head.type, body);
  ASSERT_EQ(entry.meta.has_value(), meta_bytes <= kSkeletonBodyBytes / 2);
  if (!entry.meta) return;
  ASSERT_EQ(entry.meta->size(), meta_bytes);
  EXPECT_TRUE(std::equal(entry.meta->begin(), entry.meta->end(), body.begin()));
}

TEST(SkeletonTest, HoldsEachRecordButPads) {
  SkeletonWriter writer;
  const std::vector<Placed> expected = placed(all_records(), writer);
  EXPECT_EQ(writer.record_count(), expected.size());
  EXPECT_GT(writer.memory_bytes(), expected.size() * sizeof(SkeletonEntryBytes));
  std::size_t i = 0;
  for (const Bytes& body : writer.take()) {
    EXPECT_LE(body.size(), kSkeletonBodyBytes);
    const auto read = for_each_skeleton_entry(body, [&](const SkeletonEntry& entry) {
      ASSERT_LT(i, expected.size());
      SCOPED_TRACE(i);
      expect_entry_is(entry, expected[i++]);
    });
    EXPECT_TRUE(read) << read.error().message;
  }
  EXPECT_EQ(i, expected.size());
  EXPECT_EQ(writer.record_count(), 0u);
  EXPECT_TRUE(writer.take().empty());
}

TEST(SkeletonTest, AGroupsKeysAreItsMeta) {
  for (const std::size_t pages : {std::size_t{1}, kGroupPagesMax}) {
    const Bytes body = group_body(pages);
    const std::size_t bytes = skeleton_meta_bytes(RecordType::page_group, body);
    EXPECT_EQ(bytes, 8 + 8 * pages);
    const auto keys = decode_page_group_keys(ByteSpan(body).first(bytes));
    const auto group = decode_page_group(body);
    ASSERT_TRUE(keys && group);
    EXPECT_EQ(keys->page_count, pages);
    EXPECT_EQ(keys->keys, group->keys);
    EXPECT_FALSE(decode_page_group_keys(ByteSpan(body).first(bytes - 1)));
  }
}

TEST(SkeletonTest, LeavesOutASegmentsEnd) {
  SkeletonWriter writer;
  writer.add(kSegmentHeadBytes, record_of(RecordType::skeleton, {}));
  writer.add(kSegmentHeadBytes + 64, record_of(RecordType::seal, Bytes(40)));
  EXPECT_EQ(writer.record_count(), 0u);
}

Bytes skeleton_of(const std::vector<Bytes>& records) {
  SkeletonWriter writer;
  (void)placed(records, writer);
  return writer.take().at(0);
}

Status read_all(ByteSpan body) {
  return for_each_skeleton_entry(body, [](const SkeletonEntry&) {});
}

TEST(SkeletonTest, RefusesWhatIsNoListOfEntries) {
  const Bytes commit = record_of(RecordType::commit, body_of(Commit{}));
  const Bytes group = record_of(RecordType::page_group, group_body(2));
  const Bytes body = skeleton_of({commit, group, record_of(RecordType::device_state, Bytes(9))});
  constexpr std::size_t second = sizeof(SkeletonEntryBytes) + sizeof(CommitBytes);
  constexpr std::size_t third = second + sizeof(SkeletonEntryBytes) + 24;
  ASSERT_TRUE(read_all(body));
  ASSERT_EQ(body.size(), third + sizeof(SkeletonEntryBytes));
  for (std::size_t n = 0; n < body.size(); ++n) {
    const bool between = n == 0 || n == second || n == third;
    EXPECT_EQ(read_all(ByteSpan(body).first(n)).has_value(), between) << n << " bytes";
  }
  const auto refused = [&](std::size_t offset, std::uint32_t value) {
    expect_refused(with(body, offset, value), read_all, "skeleton");
  };
  constexpr std::uint32_t first_unit = kSegmentHeadBytes / kRecordAlignment;
  const auto commit_units = static_cast<std::uint32_t>(commit.size() / kRecordAlignment);
  refused(0, first_unit - 1);                      // inside the head
  refused(second, first_unit + commit_units - 1);  // overlaps the one before
  refused(second, first_unit);
  for (const std::uint32_t meta : {0u, 31u, 33u, 0xfffffffeu}) refused(4, meta);
  for (const std::uint32_t meta : {0u, 7u, 8u, 23u, 25u, 8u + 2 * 16}) refused(second + 4, meta);
  refused(third + 4, 1);
  EXPECT_TRUE(read_all(with(body, third + 4, kMetaInRecord)));
  // A flipped bit in a prefix is seen by the prefix itself.
  EXPECT_FALSE(read_all(with(body, second + 8 + 40, std::uint8_t{0})));
}

TEST(SkeletonTest, RefusesAnEntryForWhatASegmentEndsWith) {
  for (const RecordType type :
       {RecordType::pad, RecordType::mark, RecordType::skeleton, RecordType::seal}) {
    const Bytes record = record_of(type, Bytes(40));
    Bytes body;
    SkeletonEntryBytes entry;
    entry.unit = kSegmentHeadBytes / kRecordAlignment;
    entry.meta_bytes = 40;
    std::memcpy(&entry.prefix, record.data(), sizeof entry.prefix);
    append_struct(body, entry);
    append_bytes(body, Bytes(40));
    expect_refused(body, read_all, "skeleton");
  }
}

TEST(SealTest, RoundTripsAndBounds) {
  const Seal seal{SegmentId{9}, 8192, 2, 0x1122334455667788, 40, {std::byte{3}}};
  const Bytes body = body_of(seal);
  expect_length_is_exact(body, decode_seal);
  EXPECT_EQ(*decode_seal(body), seal);
  const Seal empty{SegmentId{9}, kSegmentHeadBytes, 0, 0, 0};
  EXPECT_EQ(*decode_seal(body_of(empty)), empty);
  for (const std::uint64_t offset :
       {std::uint64_t{0}, std::uint64_t{4088}, std::uint64_t{8193}, kSegmentBytesMax}) {
    expect_refused(with(body, 8, offset), decode_seal, "seal");
  }
  expect_refused(with(body, 16, std::uint64_t{0}), decode_seal, "seal");
  expect_refused(with(body, 16, std::uint64_t{41}), decode_seal, "seal");
  expect_refused(with(body, 32, std::uint64_t{0}), decode_seal, "seal");
  expect_refused(with(body, 32, ~std::uint64_t{0}), decode_seal, "seal");
}

/// A segment's end as a reader goes through it: skeletons, at most one pad, the seal alone in the
/// last block.
void check_end(const Bytes& end, std::uint64_t at, std::uint64_t records) {
  ASSERT_EQ((at + end.size()) % kSealBlockBytes, 0u);
  ASSERT_GE(end.size(), kSealBlockBytes);
  const std::size_t block = end.size() - kSealBlockBytes;
  const ByteSpan last = ByteSpan(end).subspan(block);
  const auto prefix = decode_prefix(last);
  ASSERT_TRUE(prefix) << prefix.error().message;
  ASSERT_EQ(prefix->head.type, RecordType::seal);
  const ByteSpan body = last.subspan(kRecordPrefixBytes, prefix->body_bytes);
  ASSERT_TRUE(check_body(*prefix, body));
  const auto seal = decode_seal(body);
  ASSERT_TRUE(seal);
  EXPECT_EQ(seal->segment, SegmentId{9});
  EXPECT_EQ(seal->skeleton_offset, at);
  EXPECT_EQ(seal->record_count, records);
  for (const std::byte byte : last.subspan(kRecordPrefixBytes + prefix->body_bytes)) {
    ASSERT_EQ(byte, std::byte{0});
  }

  std::uint64_t chain = 0, entries = 0;
  std::size_t offset = 0;
  for (std::uint64_t i = 0; i < seal->skeleton_count; ++i) {
    const auto skeleton = decode_prefix(ByteSpan(end).subspan(offset));
    ASSERT_TRUE(skeleton);
    ASSERT_EQ(skeleton->head.type, RecordType::skeleton);
    const ByteSpan list = ByteSpan(end).subspan(offset + kRecordPrefixBytes, skeleton->body_bytes);
    ASSERT_TRUE(check_body(*skeleton, list));
    ASSERT_TRUE(for_each_skeleton_entry(list, [&](const SkeletonEntry&) { ++entries; }));
    chain = extend_chain(chain, skeleton->prefix_checksum);
    offset += kRecordPrefixBytes + skeleton->body_bytes;
    offset += alignment_gap(offset);
  }
  EXPECT_EQ(chain, seal->skeleton_chain);
  EXPECT_EQ(entries, records);
  if (offset == block) return;
  const auto pad = decode_prefix(ByteSpan(end).subspan(offset));
  ASSERT_TRUE(pad);
  EXPECT_EQ(pad->head.type, RecordType::pad);
  EXPECT_EQ(offset + kRecordPrefixBytes + pad->body_bytes, block);
  const ByteSpan pad_body = ByteSpan(end).subspan(offset + kRecordPrefixBytes, pad->body_bytes);
  EXPECT_TRUE(check_body(*pad, pad_body));
  EXPECT_EQ(decode_pad(pad_body)->durable, kDurable);
}

TEST(SegmentEndTest, EndsOnABlockWhereverTheRecordsEnd) {
  const Bytes record = record_of(RecordType::commit, body_of(Commit{}));
  for (std::uint64_t residue = 0; residue < kSealBlockBytes; residue += kRecordAlignment) {
    SCOPED_TRACE(residue);
    SkeletonWriter writer;
    writer.add(kSegmentHeadBytes, record);
    const std::uint64_t at = 2 * kSegmentHeadBytes + residue;
    check_end(encode_segment_end(SegmentId{9}, at, writer, kDurable, {}), at, 1);
    EXPECT_EQ(writer.record_count(), 0u);
  }
}

TEST(SegmentEndTest, OfNothingIsASealAlone) {
  SkeletonWriter writer;
  const Bytes end = encode_segment_end(SegmentId{9}, kSegmentHeadBytes, writer, kDurable, {});
  EXPECT_EQ(end.size(), kSealBlockBytes);
  check_end(end, kSegmentHeadBytes, 0);
}

TEST(SegmentEndTest, ALongSkeletonIsSeveralRecords) {
  SkeletonWriter writer;
  const Bytes record = record_of(RecordType::zero_pages, zero_runs_body(1000));
  std::uint64_t offset = kSegmentHeadBytes;
  std::uint64_t records = 0;
  for (; records < 200; ++records) {
    writer.add(offset, record);
    offset += record.size();
  }
  const Bytes end = encode_segment_end(SegmentId{9}, offset, writer, kDurable, {});
  EXPECT_GT(end.size(), 3 * kSkeletonBodyBytes);
  check_end(end, offset, records);
}

}  // namespace
}  // namespace vmshadow::format
