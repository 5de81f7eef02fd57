// The bounds of a mirror's target, and its disk's end. What it keeps is in
// written_pages_property_test.cc, a real mirror in nbd_e2e_test.cc.
#include <gtest/gtest.h>

#include <vector>

#include "capture/disk_target.h"

namespace vmshadow::capture {
namespace {

using Failure = DiskTarget::Failure;

constexpr std::uint64_t kDiskBytes = 1 << 20;

TEST(DiskTargetTest, DropsAllPastItsBoundForGood) {
  DiskTarget target(kDiskBytes, 9);
  const std::vector<std::byte> four(4 * kPageBytes, std::byte{1});
  EXPECT_TRUE(target.write(0, four));
  EXPECT_EQ(target.held_pages(), 4U);
  EXPECT_EQ(target.failure(), Failure::none);
  // QEMU is not to notice.
  EXPECT_TRUE(target.write(8 * kPageBytes, four));
  EXPECT_EQ(target.failure(), Failure::none);
  EXPECT_TRUE(target.write(16 * kPageBytes, four));
  EXPECT_EQ(target.failure(), Failure::overflow);
  EXPECT_TRUE(target.write_zeroes(0, kPageBytes, true));
  EXPECT_EQ(target.held_pages(), 0U);
  EXPECT_TRUE(target.cut().empty());
  EXPECT_TRUE(target.write(0, four));
  EXPECT_TRUE(target.cut().empty());
  EXPECT_EQ(target.failure(), Failure::overflow);
}

TEST(DiskTargetTest, RunsOfZeroesAreBoundedToo) {
  DiskTarget runs(kDiskBytes, 1);
  std::size_t taken = 0;
  for (; taken < 100 && runs.failure() == Failure::none; ++taken) {
    EXPECT_TRUE(runs.trim(2 * taken * kPageBytes, kPageBytes));
  }
  EXPECT_GT(taken, 50U);
  EXPECT_EQ(runs.failure(), taken == 100 ? Failure::none : Failure::overflow);
}

TEST(DiskTargetTest, PartsOfPagesAreNoEpoch) {
  const std::vector<std::byte> sector(512, std::byte{7});
  for (const std::uint64_t offset : {std::uint64_t{0}, std::uint64_t{512}}) {
    DiskTarget target(2 * kPageBytes, 8);
    EXPECT_TRUE(target.write(offset, sector));
    EXPECT_EQ(target.failure(), Failure::part_page);
  }
}

TEST(DiskTargetTest, TheLastPageMayEndWithTheDisk) {
  DiskTarget target(2 * kPageBytes + 512, 8);
  const std::vector<std::byte> sector(512, std::byte{7});
  EXPECT_TRUE(target.write(2 * kPageBytes, sector));
  WrittenPages cut = target.cut();
  EXPECT_EQ(cut.content(PageNumber{2})[511], std::byte{7});
  EXPECT_EQ(cut.content(PageNumber{2})[512], std::byte{0});
  EXPECT_TRUE(target.write_zeroes(0, 2 * kPageBytes + 512, true));
  EXPECT_EQ(target.cut().zero_pages(), 3U);
  EXPECT_EQ(target.failure(), Failure::none);
}

TEST(DiskTargetTest, KeepsNothingToRead) {
  DiskTarget target(kDiskBytes, 8);
  std::vector<std::byte> into(512);
  const auto read = target.read(0, into);
  ASSERT_FALSE(read);
  EXPECT_EQ(read.error().code, Errc::unsupported);
  EXPECT_TRUE(target.flush());
}

}  // namespace
}  // namespace vmshadow::capture
