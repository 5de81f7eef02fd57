// The bounds of a mirror's target, and its disk's end. What it keeps is in
// written_pages_property_test.cc, a real mirror in nbd_e2e_test.cc.
#include <gtest/gtest.h>

#include <vector>

#include "capture/disk_target.h"

namespace vmshadow::capture {
namespace {

constexpr std::uint64_t kDiskBytes = 1 << 20;

Errc code_of(const Status& status) { return status ? Errc{} : status.error().code; }

TEST(DiskTargetTest, RefusesPastItsBoundUntilItBeginsAnew) {
  DiskTarget target(kDiskBytes, 8);
  const std::vector<std::byte> four(4 * kPageBytes, std::byte{1});
  EXPECT_TRUE(target.write(0, four));
  EXPECT_EQ(code_of(target.write(4 * kPageBytes, four)), Errc::no_space);
  EXPECT_EQ(code_of(target.write_zeroes(0, kPageBytes, true)), Errc::no_space);
  const DiskTarget::Cut cut = target.cut();
  EXPECT_FALSE(cut.whole);
  EXPECT_EQ(cut.written.content_pages(), 4U);
  EXPECT_EQ(code_of(target.write(0, four)), Errc::no_space);
  target.restart();
  EXPECT_TRUE(target.write(0, four));
  EXPECT_TRUE(target.cut().whole);
}

// Each of them takes a page, or a run.
TEST(DiskTargetTest, ManySmallZeroesAreBoundedToo) {
  DiskTarget parts(kDiskBytes, 16);
  std::size_t taken = 0;
  while (taken < 100 && parts.trim(taken * kPageBytes, 512)) ++taken;
  EXPECT_LE(taken, 16U);
  DiskTarget runs(kDiskBytes, 3);
  taken = 0;
  while (taken < 200 && runs.write_zeroes(2 * taken * kPageBytes, kPageBytes, true)) ++taken;
  EXPECT_LT(taken, 200U);
  EXPECT_TRUE(runs.overflowed());
}

TEST(DiskTargetTest, PastTheDisksEndAreKnownZeroes) {
  DiskTarget target(2 * kPageBytes + 512, 8);
  const std::vector<std::byte> sector(512, std::byte{7});
  EXPECT_TRUE(target.write(2 * kPageBytes, sector));
  EXPECT_TRUE(target.cut().written.incomplete().empty());
  EXPECT_TRUE(target.write_zeroes(0, 2 * kPageBytes + 512, true));
  const DiskTarget::Cut cut = target.cut();
  EXPECT_TRUE(cut.written.incomplete().empty());
  EXPECT_EQ(cut.written.zero_pages(), 2U);
}

TEST(DiskTargetTest, KeepsNothingToRead) {
  DiskTarget target(kDiskBytes, 8);
  std::vector<std::byte> into(512);
  EXPECT_EQ(code_of(target.read(0, into)), Errc::unsupported);
  EXPECT_TRUE(target.flush());
}

}  // namespace
}  // namespace vmshadow::capture
