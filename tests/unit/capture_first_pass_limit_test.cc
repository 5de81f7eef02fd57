#include <gtest/gtest.h>

#include "capture/first_pass_limit.h"

namespace vmshadow::capture {
namespace {

using std::chrono::milliseconds;

TEST(FirstPassLimit, StaysForAGuestThatConverges) {
  for (const std::uint64_t passes : {0U, 1U, 4U}) {
    EXPECT_EQ(FirstPassLimit::after(passes), milliseconds(50)) << passes;
  }
}

TEST(FirstPassLimit, DoublesWithEveryPassUpToWhatQemuTakes) {
  EXPECT_EQ(FirstPassLimit::after(5), milliseconds(100));
  EXPECT_EQ(FirstPassLimit::after(6), milliseconds(200));
  EXPECT_EQ(FirstPassLimit::after(10), milliseconds(3200));
  EXPECT_EQ(FirstPassLimit::after(20), FirstPassLimit::kMost);
  EXPECT_EQ(FirstPassLimit::after(~std::uint64_t{0}), FirstPassLimit::kMost);
}

}  // namespace
}  // namespace vmshadow::capture
