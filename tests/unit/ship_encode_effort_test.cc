#include <gtest/gtest.h>

#include "ship/encode_effort.h"

namespace vmshadow::ship {
namespace {

TEST(EncodeEffort, FallsAsThePressureRises) {
  EncodeEffort effort;
  EXPECT_EQ(effort.acceleration(0), 1);
  EXPECT_EQ(effort.acceleration(19.9), 1);
  EXPECT_EQ(effort.acceleration(20), 4);
  EXPECT_EQ(effort.acceleration(50), 16);
  EXPECT_EQ(effort.acceleration(100), 16);
}

TEST(EncodeEffort, DoesNotFlipAroundAThreshold) {
  EncodeEffort effort;
  EXPECT_EQ(effort.acceleration(60), 16);  // both steps at once
  EXPECT_EQ(effort.acceleration(41), 16);
  EXPECT_EQ(effort.acceleration(39), 4);
  EXPECT_EQ(effort.acceleration(49), 4);
  EXPECT_EQ(effort.acceleration(11), 4);
  EXPECT_EQ(effort.acceleration(9), 1);
  EXPECT_EQ(effort.acceleration(19), 1);
}

}  // namespace
}  // namespace vmshadow::ship
