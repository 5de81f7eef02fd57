#include <gtest/gtest.h>

#include "capture/first_pass_limit.h"

namespace vmshadow::capture {
namespace {

using std::chrono::milliseconds;

constexpr io::Deadline at(int ms) { return io::Deadline(milliseconds(ms)); }

TEST(FirstPassLimit, StaysForAGuestThatConverges) {
  FirstPassLimit::Steps steps(FirstPassLimit::kMost);
  for (const std::uint64_t passes : {0U, 1U, 4U}) EXPECT_FALSE(steps.look(passes, at(1))) << passes;
}

TEST(FirstPassLimit, DoublesWithPassesUpToWhatQemuTakes) {
  FirstPassLimit::Steps steps(FirstPassLimit::kMost);
  EXPECT_EQ(steps.look(5, at(1000)), milliseconds(100));
  EXPECT_FALSE(steps.look(5, at(2000))) << "the same pass";
  EXPECT_EQ(steps.look(6, at(3000)), milliseconds(200));
  milliseconds last{};
  for (int i = 0; i < 30; ++i) {
    last = steps.look(7 + static_cast<std::uint64_t>(i), at(4000 + 1000 * i)).value_or(last);
  }
  EXPECT_EQ(last, FirstPassLimit::kMost);
  EXPECT_FALSE(steps.look(1000, at(1'000'000)));
}

// Many passes may begin until QEMU goes by a limit, or until we are given a processor to look.
TEST(FirstPassLimit, DoublesOnceHoweverManyPassesHaveBegun) {
  FirstPassLimit::Steps steps(milliseconds(300));
  EXPECT_EQ(steps.look(18, at(1000)), milliseconds(100));
  EXPECT_FALSE(steps.look(30, at(1249)));
  EXPECT_EQ(steps.look(31, at(1250)), milliseconds(200));
  EXPECT_EQ(steps.look(90, at(1600)), milliseconds(300)) << "no more than it may";
  EXPECT_FALSE(steps.look(120, at(2000)));
}

}  // namespace
}  // namespace vmshadow::capture
