#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "replay/epoch_diff.h"
#include "support/memory_epoch_image.h"

namespace vmshadow::replay {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::MemoryEpochImage;
using testing::page_of;

MemoryEpochImage diff_image() {
  MemoryEpochImage image;
  image.machine_.json = "{}";
  image.machine_.layout.blocks = {{"pc.ram", 64 * kPageBytes}, {"pc.bios", 2 * kPageBytes}};
  image.device_state_ = {std::byte{4}, std::byte{9}, std::byte{0}};
  for (const std::uint64_t page : {0, 5, 6, 7, 40}) {
    image.pages_[{BlockIndex{0}, PageNumber{page}}] = page_of(static_cast<int>(page + 1));
  }
  return image;
}

TEST(EpochDiffTest, AnEpochIsTheSameAsItself) {
  const auto image = diff_image();
  const auto diff = diff_epochs(image, image, {.count_bytes = true, .on_progress = {}});
  ASSERT_TRUE(diff) << diff.error().message;
  EXPECT_TRUE(diff->same());
  ASSERT_EQ(diff->blocks.size(), 2u);
  EXPECT_EQ(diff->blocks[0].pages_a, 64u);
  EXPECT_EQ(diff->blocks[0].ranges_total, 0u);
  EXPECT_EQ(diff->blocks[0].bytes_differing, 0u);
}

TEST(EpochDiffTest, ChangedNewAndZeroedPagesAreFoundAsRanges) {
  const auto a = diff_image();
  auto b = a;
  b.pages_[{BlockIndex{0}, PageNumber{6}}][100] = std::byte{0xff};  // one byte
  b.pages_[{BlockIndex{0}, PageNumber{8}}] = page_of(1);            // zero before
  b.pages_.erase({BlockIndex{0}, PageNumber{7}});                   // not held: zero now
  b.pages_[{BlockIndex{0}, PageNumber{40}}] = page_of(0);           // held as zero
  b.pages_[{BlockIndex{0}, PageNumber{50}}] = page_of(0);           // zero as before
  b.pages_[{BlockIndex{1}, PageNumber{1}}] = page_of(3);
  const auto diff = diff_epochs(a, b, {.count_bytes = true, .on_progress = {}});
  ASSERT_TRUE(diff) << diff.error().message;
  EXPECT_THAT(diff->blocks[0].ranges,
              ElementsAre(PageRange{PageNumber{6}, 3}, PageRange{PageNumber{40}, 1}));
  EXPECT_EQ(diff->blocks[0].pages_differing, 4u);
  EXPECT_EQ(diff->blocks[0].bytes_differing, 1 + 3 * kPageBytes);
  EXPECT_THAT(diff->blocks[1].ranges, ElementsAre(PageRange{PageNumber{1}, 1}));
  EXPECT_EQ(diff->pages_differing(), 5u);
  EXPECT_FALSE(diff->same());
  EXPECT_EQ(diff->device_differs_at, std::nullopt);
  // And the other way round.
  const auto back = diff_epochs(b, a);
  ASSERT_TRUE(back);
  EXPECT_EQ(back->blocks[0].ranges, diff->blocks[0].ranges);
  EXPECT_EQ(back->blocks[0].bytes_differing, std::nullopt);
}

TEST(EpochDiffTest, AHeldPageOfZerosIsAZeroPage) {
  class NoNulls : public MemoryEpochImage {
   public:
    [[nodiscard]] Status for_each_page(BlockIndex block, const PageVisitor& visit) const override {
      for (const auto& [place, page] : pages_) {
        if (place.first == block) VMSHADOW_TRY(visit(place.second, page.data()));
      }
      return {};
    }
  };
  NoNulls a;
  static_cast<MemoryEpochImage&>(a) = diff_image();
  const MemoryEpochImage b = a;
  a.pages_[{BlockIndex{0}, PageNumber{20}}] = page_of(0);
  EXPECT_TRUE(diff_epochs(a, b)->same());
  EXPECT_TRUE(diff_epochs(b, a)->same());
}

TEST(EpochDiffTest, OnlySoManyRangesAreKeptButAllAreCounted) {
  const auto a = diff_image();
  auto b = a;
  for (std::uint64_t page = 10; page < 20; page += 2) {
    b.pages_[{BlockIndex{0}, PageNumber{page}}] = page_of(1);
  }
  const auto diff = diff_epochs(a, b, {.count_bytes = false, .ranges_max = 2, .on_progress = {}});
  ASSERT_TRUE(diff);
  EXPECT_EQ(diff->blocks[0].ranges.size(), 2u);
  EXPECT_EQ(diff->blocks[0].ranges_total, 5u);
  EXPECT_EQ(diff->blocks[0].pages_differing, 5u);
}

TEST(EpochDiffTest, BlocksArePairedByNameAndLengthsMayDiffer) {
  const auto a = diff_image();
  auto b = a;
  b.machine_.layout.blocks = {{"vga.vram", kPageBytes}, {"pc.ram", 66 * kPageBytes}};
  b.pages_.clear();
  for (const auto& [place, page] : a.pages_) b.pages_[{BlockIndex{1}, place.second}] = page;
  const auto diff = diff_epochs(a, b);
  ASSERT_TRUE(diff) << diff.error().message;
  ASSERT_EQ(diff->blocks.size(), 3u);
  EXPECT_EQ(diff->blocks[0].name, "pc.ram");
  EXPECT_THAT(diff->blocks[0].ranges, ElementsAre(PageRange{PageNumber{64}, 2}));
  EXPECT_EQ(diff->blocks[1].name, "pc.bios");
  EXPECT_EQ(diff->blocks[1].pages_b, 0u);
  EXPECT_EQ(diff->blocks[1].pages_differing, 2u);
  EXPECT_EQ(diff->blocks[2].name, "vga.vram");
  EXPECT_EQ(diff->blocks[2].pages_differing, 1u);
  EXPECT_TRUE(diff->machine_differs);
}

TEST(EpochDiffTest, DeviceStateAndMachineAreCompared) {
  const auto a = diff_image();
  auto b = a;
  b.device_state_[1] = std::byte{8};
  EXPECT_EQ(diff_epochs(a, b)->device_differs_at, 1u);
  b.device_state_ = a.device_state_;
  b.device_state_.push_back(std::byte{0});
  EXPECT_EQ(diff_epochs(a, b)->device_differs_at, 3u);
  EXPECT_EQ(diff_epochs(b, a)->device_differs_at, 3u);
  EXPECT_FALSE(diff_epochs(a, b)->same());
  b = a;
  b.machine_.json = "{ }";
  EXPECT_TRUE(diff_epochs(a, b)->machine_differs);
  EXPECT_FALSE(diff_epochs(a, b)->same());
}

TEST(EpochDiffTest, APageOutsideItsBlockIsCorrupt) {
  const auto a = diff_image();
  auto b = a;
  b.pages_[{BlockIndex{1}, PageNumber{2}}] = page_of(1);
  for (const auto& diff : {diff_epochs(a, b), diff_epochs(b, a)}) {
    ASSERT_FALSE(diff);
    EXPECT_EQ(diff.error().code, Errc::corrupt);
    EXPECT_THAT(diff.error().message, HasSubstr("page 2 of 'pc.bios', which has 2"));
  }
}

TEST(EpochDiffTest, ProgressReachesTheTotalAndMayStopIt) {
  const auto image = diff_image();
  std::uint64_t last = 0;
  const auto diff = diff_epochs(image, image, {.on_progress = [&](auto done, auto total) -> Status {
                                  EXPECT_GE(done, last);
                                  EXPECT_EQ(total, 132u);
                                  last = done;
                                  return {};
                                }});
  ASSERT_TRUE(diff);
  EXPECT_EQ(last, 132u);
  const auto stopped = diff_epochs(image, image, {.on_progress = [](auto, auto) -> Status {
                                     return fail(Errc::cancelled, "enough");
                                   }});
  ASSERT_FALSE(stopped);
  EXPECT_EQ(stopped.error().code, Errc::cancelled);
}

}  // namespace
}  // namespace vmshadow::replay
