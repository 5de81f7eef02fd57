// Steps of the clock on the wall: what is dated before them is seen as old as it is.
#include <gtest/gtest.h>

#include "store/clock_steps.h"
#include "support/manual_clock.h"

namespace vmshadow::store {
namespace {

using std::chrono::hours;
using std::chrono::nanoseconds;
using std::chrono::seconds;

class ClockStepsTest : public testing::Test {
 protected:
  /// How long ago `time` seems to have been.
  [[nodiscard]] seconds age_of(WallTime time) const {
    return std::chrono::duration_cast<seconds>(
        nanoseconds{clock_.wall().ns - steps_.by_present_clock(time).ns});
  }

  test::ManualClock clock_;
  ClockSteps steps_{clock_};
};

TEST_F(ClockStepsTest, TimePassesWithoutAStep) {
  const WallTime first = clock_.wall();
  clock_.advance(hours(30));
  EXPECT_EQ(steps_.look(), seconds(0));
  EXPECT_EQ(age_of(first), hours(30));
}

TEST_F(ClockStepsTest, WhatWasBeforeAStepAheadIsNoOlderThanItIs) {
  const WallTime first = clock_.wall();
  clock_.advance(seconds(60));
  static_cast<void>(steps_.look());
  clock_.advance(seconds(1));
  const WallTime last = clock_.wall();
  clock_.set_ahead(hours(24 * 365));
  const WallTime next = clock_.wall();
  clock_.advance(seconds(1));
  EXPECT_EQ(steps_.look(), hours(24 * 365));
  clock_.advance(seconds(8));
  EXPECT_EQ(age_of(first), seconds(70));
  EXPECT_EQ(age_of(last), seconds(9));
  EXPECT_EQ(age_of(next), seconds(9));
  EXPECT_EQ(steps_.look(), seconds(0)) << "it is told once";
}

TEST_F(ClockStepsTest, StepsAddUp) {
  const WallTime first = clock_.wall();
  clock_.set_ahead(hours(1));
  static_cast<void>(steps_.look());
  clock_.advance(seconds(5));
  const WallTime second = clock_.wall();
  clock_.advance(seconds(5));
  clock_.set_ahead(hours(2));
  static_cast<void>(steps_.look());
  EXPECT_EQ(age_of(first), seconds(10));
  EXPECT_EQ(age_of(second), seconds(5));
}

TEST_F(ClockStepsTest, AStepThatIsTakenBackLeavesNothing) {
  const WallTime first = clock_.wall();
  clock_.set_ahead(hours(1));
  static_cast<void>(steps_.look());
  clock_.advance(seconds(10));
  clock_.set_ahead(-hours(1));
  EXPECT_EQ(steps_.look(), -hours(1));
  EXPECT_EQ(age_of(first), seconds(10));
  // Back by itself changes nothing: what is dated after now can be seen to be.
  const WallTime second = clock_.wall();
  clock_.set_ahead(-hours(1));
  static_cast<void>(steps_.look());
  EXPECT_EQ(steps_.by_present_clock(second), second);
}

TEST_F(ClockStepsTest, ALittleIsNoStep) {
  const WallTime first = clock_.wall();
  clock_.set_ahead(seconds(4));
  EXPECT_EQ(steps_.look(), seconds(0));
  EXPECT_EQ(age_of(first), seconds(4));
}

}  // namespace
}  // namespace vmshadow::store
