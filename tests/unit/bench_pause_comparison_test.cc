// When the pauses under two secondaries may be compared: enough rounds, and a guest that changed
// about the same amount under either.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "scenario/pause_comparison.h"

namespace vmshadow::bench {
namespace {

using Figures = std::vector<double>;
using ::testing::HasSubstr;

PauseSide side(const char* name, Figures pause_ms, double pages) {
  return {name, pause_ms, Figures(pause_ms.size(), pages)};
}

TEST(PauseComparison, IsTheMedianOverRounds) {
  const auto made = compare_pauses(side("vmshadow", {1, 2, 3, 4, 50}, 100),
                                   side("the floor", {1, 1, 1, 1, 1}, 100));
  ASSERT_TRUE(made.ratio);
  EXPECT_DOUBLE_EQ(*made.ratio, 3);
  EXPECT_EQ(made.why_not, "");
}

TEST(PauseComparison, TakesTheRoundsThatBothHave) {
  const auto made = compare_pauses(side("vmshadow", {2, 2, 2, 2, 2, 9, 9, 9, 9, 9, 9}, 100),
                                   side("the floor", {1, 1, 1, 1, 1}, 100));
  ASSERT_TRUE(made.ratio);
  EXPECT_DOUBLE_EQ(*made.ratio, 2);
}

TEST(PauseComparison, NeedsFiveRoundsOfEither) {
  const PauseSide four = side("vmshadow", {1, 1, 1, 1}, 100);
  const PauseSide five = side("the floor", {1, 1, 1, 1, 1}, 100);
  for (const auto& made : {compare_pauses(four, five), compare_pauses(five, four)}) {
    EXPECT_FALSE(made.ratio);
    EXPECT_EQ(made.why_not, "fewer than 5 rounds");
  }
}

TEST(PauseComparison, NeedsAGuestThatWroteTheSameToATenth) {
  const PauseSide ours = side("vmshadow", {1, 1, 1, 1, 1}, 1000);
  EXPECT_TRUE(compare_pauses(ours, side("the floor", {1, 1, 1, 1, 1}, 900)).ratio);
  EXPECT_TRUE(compare_pauses(side("the floor", {1, 1, 1, 1, 1}, 900), ours).ratio);
  const auto made = compare_pauses(ours, side("the floor", {1, 1, 1, 1, 1}, 899));
  EXPECT_FALSE(made.ratio);
  EXPECT_EQ(made.why_not,
            "the guest wrote 1000 pages per epoch under vmshadow and 899 under the floor: more "
            "than 10 % apart");
  EXPECT_FALSE(compare_pauses(side("the floor", {1, 1, 1, 1, 1}, 899), ours).ratio);
}

// One odd round does not forbid what the others show.
TEST(PauseComparison, JudgesTheMedianOfTheAmounts) {
  PauseSide ours = side("vmshadow", {1, 1, 1, 1, 1}, 1000);
  ours.pages_per_epoch.back() = 10;
  EXPECT_TRUE(compare_pauses(ours, side("the floor", {1, 1, 1, 1, 1}, 1000)).ratio);
}

TEST(PauseComparison, NeedsToKnowWhatTheGuestWrote) {
  PauseSide theirs = side("QEMU's own secondary", {1, 1, 1, 1, 1}, 1000);
  theirs.pages_per_epoch.clear();
  const auto made = compare_pauses(side("vmshadow", {1, 1, 1, 1, 1}, 1000), theirs);
  EXPECT_FALSE(made.ratio);
  EXPECT_THAT(made.why_not, HasSubstr("under QEMU's own secondary is not known"));
}

// A guest that wrote nothing wrote the same.
TEST(PauseComparison, OfAnIdleGuestIsPossible) {
  EXPECT_TRUE(
      compare_pauses(side("vmshadow", {1, 1, 1, 1, 1}, 0), side("the floor", {1, 1, 1, 1, 1}, 0))
          .ratio);
}

}  // namespace
}  // namespace vmshadow::bench
