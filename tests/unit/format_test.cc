// Encoding and decoding of every record: what goes in comes out, and each malformed body is
// refused.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/hash.h"
#include "format/epoch_records.h"
#include "format/journal.h"
#include "format/record.h"
#include "format/wire.h"

namespace vmshadow::format {
namespace {

TEST(RecordTest, PrefixRoundTrips) {
  std::vector<std::byte> out;
  const RecordHead head{RecordType::device_state, 7, vm_id("web1"), Generation{3}, Epoch{42}};
  const std::vector<std::byte> body(100, std::byte{0x5a});
  const std::uint64_t sum = append_record(out, head, body);
  ASSERT_EQ(out.size(), kRecordPrefixBytes + body.size());
  const auto prefix = decode_prefix(out);
  ASSERT_TRUE(prefix) << prefix.error().message;
  EXPECT_EQ(prefix->head.type, RecordType::device_state);
  EXPECT_EQ(prefix->head.sequence, 7u);
  EXPECT_EQ(prefix->head.vm, vm_id("web1"));
  EXPECT_EQ(prefix->head.generation, Generation{3});
  EXPECT_EQ(prefix->head.epoch, Epoch{42});
  EXPECT_EQ(prefix->prefix_checksum, sum);
  EXPECT_TRUE(check_body(*prefix, ByteSpan(out).subspan(kRecordPrefixBytes)));
}

TEST(RecordTest, EveryFlippedBitIsSeen) {
  std::vector<std::byte> out;
  append_record(out, {RecordType::device_state, 0, vm_id("a"), Generation{1}, Epoch{1}},
                std::vector<std::byte>(16, std::byte{1}));
  for (std::size_t bit = 0; bit < out.size() * 8; ++bit) {
    auto damaged = out;
    damaged[bit / 8] ^= std::byte{1} << (bit % 8);
    const auto prefix = decode_prefix(damaged);
    const bool seen =
        !prefix || !check_body(*prefix, ByteSpan(damaged).subspan(kRecordPrefixBytes));
    EXPECT_TRUE(seen) << "bit " << bit;
  }
}

using Bytes = std::vector<std::byte>;
using testing::HasSubstr;

/// A record whose prefix has `byte` at `offset`, with a checksum that holds.
Bytes forged_prefix(std::size_t offset, std::byte byte) {
  Bytes out;
  append_record(out, {RecordType::ping, 0, {}, {}, {}}, {});
  out[offset] = byte;
  const le64 sum(checksum64(ByteSpan(out).first(56)));
  std::memcpy(out.data() + 56, &sum, sizeof sum);
  return out;
}

TEST(RecordTest, RefusesWhatItDoesNotKnow) {
  const auto expect = [](const Bytes& bytes, Errc code, const std::string& words) {
    const auto prefix = decode_prefix(bytes);
    ASSERT_FALSE(prefix);
    EXPECT_EQ(prefix.error().code, code);
    EXPECT_THAT(prefix.error().message, HasSubstr(words));
  };
  expect(forged_prefix(0, std::byte{0}), Errc::corrupt, "not a vmshadow record");
  for (const int version : {0, 1, 3}) {
    expect(forged_prefix(4, static_cast<std::byte>(version)), Errc::version,
           fmt::format("record version {}, but this program knows 2", version));
  }
  expect(forged_prefix(7, std::byte{0x77}), Errc::version, "unknown to this program");
  expect(forged_prefix(11, std::byte{1}), Errc::corrupt, "over the limit");
  Bytes plain = forged_prefix(12, std::byte{1});
  EXPECT_TRUE(decode_prefix(plain));
  plain[13] = std::byte{1};
  expect(plain, Errc::corrupt, "fails its checksum");
}

TEST(RecordTest, TheLargestBodyIsTaken) {
  Bytes out;
  append_record(out, {RecordType::device_state, 0, {}, {}, {}}, Bytes(kRecordBodyBytesMax));
  const auto prefix = decode_prefix(out);
  ASSERT_TRUE(prefix);
  EXPECT_EQ(prefix->body_bytes, kRecordBodyBytesMax);
  EXPECT_EQ(check_body(*prefix, ByteSpan(out).first(10)).error().code, Errc::corrupt);
}

TEST(RecordTest, TheChainKnowsTheOrder) {
  const std::uint64_t ab = extend_chain(extend_chain(0, 1), 2);
  EXPECT_NE(ab, extend_chain(extend_chain(0, 2), 1));
  EXPECT_NE(ab, extend_chain(0, 1));
  EXPECT_NE(extend_chain(0, 0), 0u);
}

/// Every proper prefix of a body, and the body with a byte more, must be refused without harm.
template <class Decode>
void expect_exact_length(const Bytes& body, const Decode& decode) {
  ASSERT_TRUE(decode(body)) << decode(body).error().message;
  for (std::size_t n = 0; n < body.size(); ++n) {
    const Bytes cut(body.begin(), body.begin() + static_cast<std::ptrdiff_t>(n));
    EXPECT_FALSE(decode(cut)) << n << " bytes";
  }
  Bytes longer = body;
  longer.push_back(std::byte{0});
  EXPECT_FALSE(decode(longer));
}

/// With `byte` at `offset` the body must be refused.
template <class Decode>
void expect_refused(Bytes body, std::size_t offset, int byte, const Decode& decode,
                    Errc code = Errc::corrupt, const std::string& words = "malformed") {
  body.at(offset) = static_cast<std::byte>(byte);
  const auto result = decode(body);
  ASSERT_FALSE(result) << "offset " << offset;
  EXPECT_EQ(result.error().code, code) << result.error().message;
  EXPECT_THAT(result.error().message, HasSubstr(words)) << "offset " << offset;
}

template <class T>
Bytes bytes_of_body(const T& value) {
  Bytes body;
  append_body(body, value);
  return body;
}

Bytes group_body(std::vector<PageKey> keys, std::size_t payload_bytes, int codec = 0) {
  Bytes body;
  const std::vector<std::uint64_t> checksums(keys.size(), 0x1234);
  append_page_group_body(body, static_cast<Codec>(codec), keys, checksums, Bytes(payload_bytes));
  return body;
}

TEST(PageGroupTest, Bounds) {
  const PageKey a{BlockIndex{1}, PageNumber{7}};
  const PageKey b{BlockIndex{65535}, PageNumber{(kRamBlockBytesMax / kPageBytes) - 1}};
  const Bytes body = group_body({a, b}, 2 * kPageBytes);
  const auto group = decode_page_group(body);
  ASSERT_TRUE(group) << group.error().message;
  EXPECT_EQ(group->page_count, 2u);
  EXPECT_EQ(group->keys[1], b);
  EXPECT_EQ(group->payload.size(), 2 * kPageBytes);
  for (const std::size_t n : {0, 7, 8, 15, 23, 24, 39, 40, 100}) {
    EXPECT_FALSE(decode_page_group(ByteSpan(body).first(n))) << n;
  }
  expect_refused(body, 0, 0, decode_page_group);
  expect_refused(body, 0, 17, decode_page_group);
  expect_refused(body, 2, 3, decode_page_group, Errc::version, "codec 3");
  expect_refused(body, 3, 1, decode_page_group, Errc::corrupt, "reserved");
  expect_refused(body, 4, 1, decode_page_group, Errc::corrupt, "payload length");
  expect_refused(body, 21, 0xff, decode_page_group, Errc::corrupt, "out of range");
  EXPECT_THAT(decode_page_group(group_body({a, a}, 2 * kPageBytes)).error().message,
              HasSubstr("the same page twice"));
  EXPECT_THAT(decode_page_group(group_body({a, b}, kPageBytes)).error().message,
              HasSubstr("not whole pages"));
  EXPECT_TRUE(decode_page_group(group_body({a, b}, 5, 1)));
}

TEST(PageGroupTest, LostPagesAreASentence) {
  const std::vector<PageKey> keys = {{BlockIndex{1}, PageNumber{7}}, {{}, PageNumber{8}}};
  const std::vector<std::uint64_t> none(2);
  const auto lost = [&](std::size_t text_bytes) {
    Bytes body;
    append_page_group_body(body, Codec::lost, keys, none, Bytes(text_bytes, std::byte{'x'}));
    return body;
  };
  const Bytes body = lost(30);
  ASSERT_TRUE(decode_page_group(body));
  EXPECT_EQ(decode_page_group(body)->codec, Codec::lost);
  EXPECT_EQ(decode_page_group(body)->payload.size(), 30u);
  EXPECT_EQ(decode_page_group(lost(5000))->payload.size(), kLostTextBytesMax);
  expect_refused(body, 24, 1, decode_page_group, Errc::corrupt, "more than a sentence");
  expect_refused(body, 39, 1, decode_page_group, Errc::corrupt, "more than a sentence");
  Bytes longer = lost(kLostTextBytesMax);
  longer.push_back(std::byte{'x'});
  expect_refused(longer, 4, 1, decode_page_group, Errc::corrupt, "more than a sentence");
}

TEST(ZeroPagesTest, Bounds) {
  const std::uint64_t pages_max = kRamBlockBytesMax / kPageBytes;
  const std::vector<ZeroRun> runs = {{{BlockIndex{2}, PageNumber{3}}, 4},
                                     {{BlockIndex{3}, PageNumber{0}}, pages_max}};
  Bytes body;
  append_zero_pages_body(body, runs);
  expect_exact_length(body, decode_zero_pages);
  EXPECT_EQ(decode_zero_pages(body)->at(1).count, pages_max);
  expect_refused(body, 0, 0, decode_zero_pages);
  expect_refused(body, 0, 3, decode_zero_pages);
  expect_refused(body, 3, 0xff, decode_zero_pages);
  expect_refused(body, 4, 1, decode_zero_pages, Errc::corrupt, "reserved");
  expect_refused(body, 16, 0, decode_zero_pages, Errc::corrupt, "out of range");
  expect_refused(body, 24, 1, decode_zero_pages, Errc::corrupt, "out of range");
  expect_refused(body, 39, 0xff, decode_zero_pages, Errc::corrupt, "out of range");
}

TEST(MachineTest, RoundTripsAndBounds) {
  MachineDescription machine;
  machine.json = "{}";
  machine.configuration = Bytes(3, std::byte{9});
  machine.layout = {{{"a", kPageBytes}, {"b", 0}}, 1, 2, 3};
  Bytes body;
  append_machine_body(body, machine);
  expect_exact_length(body, decode_machine);
  EXPECT_EQ(*decode_machine(body), machine);
  expect_refused(body, 3, 1, decode_machine, Errc::corrupt, "over its limit");
  expect_refused(body, 6, 2, decode_machine, Errc::corrupt, "over its limit");
  expect_refused(body, 9, 8, decode_machine, Errc::corrupt, "over its limit");
  constexpr std::size_t block = 24 + 3 + 2;  // the first block's head
  expect_refused(body, block, 0, decode_machine, Errc::corrupt, "block 0 is out of range");
  expect_refused(body, block + 1, 2, decode_machine, Errc::corrupt, "block 0 is out of range");
  expect_refused(body, block + 2, 1, decode_machine, Errc::corrupt, "RAM behind a disk");
  expect_refused(body, block + 2, 2, decode_machine, Errc::corrupt, "unknown kind");
  expect_refused(body, block + 3, 1, decode_machine, Errc::corrupt, "unknown kind");
  expect_refused(body, block + 4, 1, decode_machine, Errc::corrupt, "block 0 is out of range");
  expect_refused(body, block + 11, 1, decode_machine, Errc::corrupt, "block 0 is out of range");
  expect_refused(body, body.size() - 1, 'a', decode_machine, Errc::corrupt, "twice");
}

TEST(MachineTest, DisksFollowTheRamAndEndAtASector) {
  MachineDescription machine;
  machine.layout.blocks = {{"a", 2 * kPageBytes}};
  machine.disks = {{"a", 3 * kPageBytes + 512}, {"b", 512}};
  Bytes body;
  append_machine_body(body, machine);
  expect_exact_length(body, decode_machine);
  EXPECT_EQ(*decode_machine(body), machine);
  EXPECT_EQ(machine.block_count(), 3u);
  EXPECT_EQ(machine.total_pages(), 2u + 4u + 1u);
  EXPECT_FALSE(machine.block(BlockIndex{0}).is_disk);
  EXPECT_TRUE(machine.block(BlockIndex{1}).is_disk);
  EXPECT_EQ(machine.block(BlockIndex{1}).pages, 4u);
  EXPECT_EQ(machine.block(BlockIndex{2}).name, "b");
  constexpr std::size_t last = 24 + 3 * (12 + 1) - 12 - 1;  // the last block's head
  expect_refused(body, last + 2, 0, decode_machine, Errc::corrupt, "RAM behind a disk");
  expect_refused(body, last + 4, 1, decode_machine, Errc::corrupt, "block 2 is out of range");
  expect_refused(body, last + 12, 'a', decode_machine, Errc::corrupt, "twice");
}

TEST(EpochEndTest, RoundTripsAndBounds) {
  EpochSummary summary{7, true, 0x1122334455667788, WallTime{-5}, 9, 8, 3, 1000, 20};
  Bytes body;
  append_epoch_end_body(body, summary);
  expect_exact_length(body, decode_epoch_end);
  EXPECT_EQ(*decode_epoch_end(body), summary);
  expect_refused(body, 4, 3, decode_epoch_end, Errc::corrupt, "reserved flag");
  expect_refused(body, 40, 9, decode_epoch_end, Errc::corrupt, "contradict");
  expect_refused(body, 60, 1, decode_epoch_end, Errc::corrupt, "contradict");
}

TEST(JournalTest, RoundTripsAndBounds) {
  const JournalPosition durable{SegmentId{4}, SegmentOffset{8192}};
  const Commit commit{WallTime{5}, 77, durable};
  expect_exact_length(bytes_of_body(commit), decode_commit);
  EXPECT_EQ(*decode_commit(bytes_of_body(commit)), commit);
  const Pad pad{durable};
  EXPECT_EQ(*decode_pad(bytes_of_body(pad)), pad);
  EXPECT_FALSE(decode_pad(ByteSpan(bytes_of_body(pad)).first(15)));
  const Grant grant{WallTime{6}, "db-1", durable};
  const Bytes body = bytes_of_body(grant);
  expect_exact_length(body, decode_grant);
  EXPECT_EQ(*decode_grant(body), grant);
  expect_refused(body, 8, 5, decode_grant);
  expect_refused(body, 10, 1, decode_grant);
  expect_refused(body, 12, 1, decode_grant);
  expect_refused(body, 32, '/', decode_grant);
  expect_refused(body, 32, '.', decode_grant);
}

TEST(PadTest, FillsUpToABlock) {
  for (const std::uint64_t offset : {0, 8, 4000, 4008, 4016, 4024, 4088, 8192, 12288 - 72}) {
    Bytes out;
    append_pad(out, offset, 4096, {SegmentId{2}, SegmentOffset{4096}});
    EXPECT_EQ(out.size(), pad_bytes(offset, 4096)) << offset;
    EXPECT_EQ((offset + out.size()) % 4096, 0u) << offset;
    if (out.empty()) continue;
    const auto prefix = decode_prefix(out);
    ASSERT_TRUE(prefix) << offset;
    const ByteSpan body = ByteSpan(out).subspan(kRecordPrefixBytes);
    EXPECT_TRUE(check_body(*prefix, body));
    EXPECT_EQ(decode_pad(body)->durable.segment, SegmentId{2});
  }
  EXPECT_EQ(pad_bytes(4096, 4096), 0u);
  EXPECT_EQ(pad_bytes(4096 - kPadRecordBytesMin, 4096), kPadRecordBytesMin);
  EXPECT_EQ(pad_bytes(4096 - kPadRecordBytesMin + 8, 4096), 4096 + kPadRecordBytesMin - 8);
}

TEST(MarkTest, EndsABatchAtABlock) {
  Mark mark{{SegmentId{7}, SegmentOffset{8192}}, {}, 5, {SegmentId{6}, SegmentOffset{4096}}};
  mark.salt[3] = std::byte{9};
  for (const std::uint64_t offset : {0, 8, 3976, 3984, 4088, 4096, 8192}) {
    Bytes out;
    append_mark(out, offset, 4096, mark);
    EXPECT_EQ(out.size(), mark_bytes(offset, 4096)) << offset;
    EXPECT_EQ((offset + out.size()) % 4096, 0u) << offset;
    const auto prefix = decode_prefix(out);
    ASSERT_TRUE(prefix) << offset;
    EXPECT_EQ(prefix->head.type, RecordType::mark);
    const ByteSpan body = ByteSpan(out).subspan(kRecordPrefixBytes);
    EXPECT_TRUE(check_body(*prefix, body));
    EXPECT_EQ(*decode_mark(body), mark);
    EXPECT_FALSE(decode_mark(body.first(sizeof(MarkBytes) - 1)));
  }
  EXPECT_EQ(mark_bytes(4096, 4096), 4096u) << "each batch has one";
  EXPECT_EQ(mark_bytes(4096 - kMarkRecordBytesMin, 4096), kMarkRecordBytesMin);
  EXPECT_EQ(mark_bytes(4096 - kMarkRecordBytesMin + 8, 4096), 4096 + kMarkRecordBytesMin - 8);
}

TEST(MarkTest, ItsChainIsMadeOfWholeRecords) {
  Bytes records;
  std::uint64_t chain = 0;
  for (const std::size_t bytes : {0u, 1u, 8u, 4096u}) {
    const RecordHead head{RecordType::device_state, 0, {}, {}, {}};
    chain = extend_chain(chain, append_record(records, head, Bytes(bytes)));
    records.resize(records.size() + alignment_gap(records.size()));
  }
  EXPECT_EQ(chain_records(0, records), chain);
}

TEST(SegmentHeadTest, RoundTripsAndBounds) {
  SegmentHead head{{}, SegmentId{9}, WallTime{3}};
  head.store[0] = std::byte{1};
  head.salt[0] = std::byte{2};
  const Bytes bytes = encode_segment_head(head);
  ASSERT_EQ(bytes.size(), kSegmentHeadBytes);
  EXPECT_EQ(*decode_segment_head(bytes), head);
  EXPECT_FALSE(decode_segment_head(ByteSpan(bytes).first(kSegmentHeadBytes - 1)));
  for (std::size_t i = 0; i < sizeof(SegmentHeadBytes); ++i) {
    Bytes damaged = bytes;
    damaged[i] ^= std::byte{4};
    EXPECT_FALSE(decode_segment_head(damaged)) << i;
  }
  const auto forged = [&](std::size_t offset, int byte) {
    Bytes other = bytes;
    other[offset] = static_cast<std::byte>(byte);
    const le64 sum(checksum64(ByteSpan(other).first(48)));
    std::memcpy(other.data() + 48, &sum, sizeof sum);
    const le64 salt_sum(checksum64(ByteSpan(other).first(72)));
    std::memcpy(other.data() + 72, &salt_sum, sizeof salt_sum);
    return decode_segment_head(other);
  };
  EXPECT_EQ(forged(8, kStoreVersion + 1).error().code, Errc::version);
  EXPECT_THAT(forged(8, kStoreVersion + 1).error().message, HasSubstr("use a newer vmshadow"));
  EXPECT_THAT(forged(8, kStoreVersion - 1).error().message, HasSubstr("use an older vmshadow"));
  EXPECT_EQ(forged(10, 3).error().code, Errc::corrupt);
  EXPECT_EQ(forged(12, 1).error().code, Errc::corrupt);
  EXPECT_EQ(forged(0, 1).error().code, Errc::corrupt);
}

TEST(WireTest, RoundTripsAndBounds) {
  const Hello hello{1, 3, 0x80, kPageBytes, "web1"};
  const Bytes body = bytes_of_body(hello);
  expect_exact_length(body, decode_hello);
  EXPECT_EQ(*decode_hello(body), hello);
  expect_refused(body, 0, 0, decode_hello, Errc::protocol);
  expect_refused(body, 0, 4, decode_hello, Errc::protocol);
  expect_refused(body, 14, 1, decode_hello, Errc::protocol);
  expect_refused(body, 9, 0x20, decode_hello, Errc::unsupported, "pages of 8192 bytes");
  expect_refused(body, 16, '-', decode_hello, Errc::invalid_argument, "name");

  const Welcome welcome{1, 5, Generation{8}, Epoch{9}};
  expect_exact_length(bytes_of_body(welcome), decode_welcome);
  EXPECT_EQ(*decode_welcome(bytes_of_body(welcome)), welcome);
  expect_refused(bytes_of_body(welcome), 0, 3, decode_welcome, Errc::version, "not offered");
  expect_refused(bytes_of_body(welcome), 2, 1, decode_welcome, Errc::protocol);

  const Ack ack{WallTime{5}, std::chrono::microseconds{6}};
  expect_exact_length(bytes_of_body(ack), decode_ack);
  EXPECT_EQ(*decode_ack(bytes_of_body(ack)), ack);

  const Refusal refusal{Errc::no_space, "the disk is full"};
  const Bytes refused = bytes_of_body(refusal);
  expect_exact_length(refused, decode_refusal);
  EXPECT_EQ(*decode_refusal(refused), refusal);
  expect_refused(refused, 4, 1, decode_refusal, Errc::protocol);
  EXPECT_EQ(decode_refusal(bytes_of_body(Refusal{static_cast<Errc>(999), "x"}))->code, Errc::io);
  EXPECT_EQ(decode_refusal(bytes_of_body(Refusal{Errc::io, "a\x1b[2J\n"}))->text, "a?[2J?");
  const auto long_text = decode_refusal(bytes_of_body(Refusal{Errc::io, std::string(5000, 'x')}));
  EXPECT_EQ(long_text->text.size(), kRefusalTextBytesMax);
}

TEST(WireTest, BaseRecordsRoundTripWithinBounds) {
  BaseQuery query;
  query.secret[191] = std::byte{9};
  expect_exact_length(bytes_of_body(query), decode_base_query);
  EXPECT_EQ(*decode_base_query(bytes_of_body(query)), query);

  const BaseHashes hashes{{{{BlockIndex{1}, PageNumber{7}}, {3, 4}}, {{}, {5, 6}}}};
  const Bytes body = bytes_of_body(hashes);
  expect_exact_length(body, decode_base_hashes);
  EXPECT_EQ(*decode_base_hashes(body), hashes);
  expect_refused(body, 0, 1, decode_base_hashes, Errc::protocol);
  expect_refused(body, 0, 0, decode_base_hashes, Errc::protocol);
  expect_refused(body, 4, 1, decode_base_hashes, Errc::protocol);
  BaseHashes most;
  most.pages.resize(kBaseHashesMax);
  EXPECT_EQ(*decode_base_hashes(bytes_of_body(most)), most);
  most.pages.emplace_back();
  EXPECT_EQ(decode_base_hashes(bytes_of_body(most)).error().code, Errc::protocol);

  const BaseEnd end{12, "epoch 4 is damaged"};
  const Bytes ended = bytes_of_body(end);
  expect_exact_length(ended, decode_base_end);
  EXPECT_EQ(*decode_base_end(ended), end);
  expect_refused(ended, 10, 1, decode_base_end, Errc::protocol);
  expect_refused(ended, 12, 1, decode_base_end, Errc::protocol);
  EXPECT_EQ(decode_base_end(bytes_of_body(BaseEnd{0, "a\x1b"}))->why_not, "a?");
}

TEST(WireTest, ChoosesTheHighestCommonVersion) {
  EXPECT_EQ(*choose_version({1, 1, 0, kPageBytes, "a"}), 1);
  EXPECT_EQ(*choose_version({1, 9, 0, kPageBytes, "a"}), 2);
  const auto none = choose_version({3, 9, 0, kPageBytes, "a"});
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().code, Errc::version);
  EXPECT_THAT(none.error().message, HasSubstr("upgrade the older one"));
}

}  // namespace
}  // namespace vmshadow::format
