#include <gtest/gtest.h>

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

}  // namespace
}  // namespace vmshadow::format
