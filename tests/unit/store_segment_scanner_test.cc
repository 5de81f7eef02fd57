// The scanner on bytes of every kind.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "format/journal.h"
#include "store/damage.h"
#include "store/directory.h"
#include "store/segment_scanner.h"

namespace vmshadow::store {
namespace {

using format::RecordType;
using testing::HasSubstr;
using Bytes = std::vector<std::byte>;

Bytes record(std::size_t body_bytes, RecordType type = RecordType::device_state) {
  Bytes out;
  format::append_record(out, {type, 0, vm_id("a"), Generation{1}, Epoch{2}}, Bytes(body_bytes));
  out.resize(out.size() + format::alignment_gap(out.size()));
  return out;
}

Bytes operator+(Bytes a, const Bytes& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

/// "good 0-72, bad 72-144: …" for each item.
std::string scan(const Bytes& bytes) {
  const MemorySource source(bytes);
  SegmentScanner scanner(source, 0);
  std::string text;
  while (true) {
    const ScanItem item = scanner.next();
    if (std::holds_alternative<EndOfSegment>(item)) return text + "end";
    if (const auto* good = std::get_if<GoodRecord>(&item)) {
      text += "good " + std::to_string(good->offset) + ", ";
    } else {
      const auto& bad = std::get<BadRegion>(item);
      text += "bad " + std::to_string(bad.offset) + "-" + std::to_string(bad.end) +
              (bad.prefix ? "p" : "") + ": " + bad.what + ", ";
    }
  }
}

TEST(SegmentScannerTest, WalksRecords) {
  EXPECT_EQ(scan({}), "end");
  EXPECT_EQ(scan(record(1)), "good 0, end");
  EXPECT_EQ(scan(record(1) + record(8) + record(0)), "good 0, good 72, good 144, end");
}

TEST(SegmentScannerTest, StepsOverDamage) {
  Bytes bytes = record(16) + record(16) + record(16);
  bytes[80 + 70] ^= std::byte{1};
  EXPECT_EQ(scan(bytes), "good 0, bad 80-160p: record body fails its checksum, good 160, end");
  bytes[80 + 20] ^= std::byte{1};
  EXPECT_EQ(scan(bytes), "good 0, bad 80-160: record prefix fails its checksum, good 160, end");
  bytes[0] = std::byte{0};
  EXPECT_THAT(scan(bytes), HasSubstr("bad 0-160: not a vmshadow record"));
  EXPECT_EQ(scan(record(16) + Bytes(1000)), "good 0, bad 80-1080: nothing is written here, end");
  EXPECT_THAT(scan(Bytes(1000) + record(16)), HasSubstr("bad 0-1000: not a vmshadow record"));
  EXPECT_EQ(scan(record(16, RecordType::hello) + record(0)),
            "bad 0-80: a record of type 0x101 does not belong in a journal, good 80, end");
  Bytes gap = record(1) + record(1);
  gap[66] = std::byte{1};
  EXPECT_EQ(scan(gap), "bad 0-72p: bytes between two records are not zero, good 72, end");
}

TEST(SegmentScannerTest, SeesWhereTheSegmentEnds) {
  const Bytes bytes = record(16) + record(16);
  for (std::size_t size = 81; size < bytes.size(); ++size) {
    const std::string text = scan(Bytes(bytes.begin(), bytes.begin() + static_cast<long>(size)));
    EXPECT_THAT(text, HasSubstr("bad 80-" + std::to_string(size)));
    EXPECT_THAT(text,
                HasSubstr(size < 144 ? "inside a record's prefix" : "inside a record's body"));
  }
}

TEST(SegmentScannerTest, RecordsCrossTheWindow) {
  Bytes bytes;
  std::string wanted;
  for (int i = 0; i < 5; ++i) {
    wanted += "good " + std::to_string(bytes.size()) + ", ";
    bytes = bytes + record(format::kRecordBodyBytesMax - 3);
  }
  EXPECT_EQ(scan(bytes), wanted + "end");
}

TEST(SegmentNameTest, OnlyExactNamesAreSegments) {
  EXPECT_EQ(parse_segment_file_name(segment_file_name(SegmentId{0xabc})), SegmentId{0xabc});
  for (const char* name : {"", "1.seg", "000000000000000g.seg", "0000000000000ABC.seg",
                           "0000000000000abc.seg~", "0000000000000abc.sex"}) {
    EXPECT_FALSE(parse_segment_file_name(name)) << name;
  }
}

TEST(IdentityTest, RoundTripsAndRefuses) {
  format::StoreId id{};
  id[3] = std::byte{0xfe};
  const std::string text = encode_identity(id);
  EXPECT_EQ(*decode_identity(text), id);
  for (std::size_t i = 0; i < text.size(); ++i) {
    std::string damaged = text;
    damaged[i] = static_cast<char>(damaged[i] ^ 2);
    EXPECT_FALSE(decode_identity(damaged)) << i;
    EXPECT_FALSE(decode_identity(text.substr(0, i))) << i;
  }
}

}  // namespace
}  // namespace vmshadow::store
