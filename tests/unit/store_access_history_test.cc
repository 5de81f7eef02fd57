#include <gtest/gtest.h>

#include "store/access_history.h"

namespace vmshadow::store {
namespace {

MonotonicTime at_hour(int hour) { return MonotonicTime{} + std::chrono::hours(hour); }

TEST(AccessHistoryTest, WhatWasReadADayAgoCountsHalf) {
  AccessHistory history;
  history.note(SegmentId{1}, 1000, at_hour(0));
  EXPECT_DOUBLE_EQ(history.recent_bytes(SegmentId{1}, at_hour(0)), 1000);
  EXPECT_DOUBLE_EQ(history.recent_bytes(SegmentId{1}, at_hour(24)), 500);
  history.note(SegmentId{1}, 1000, at_hour(24));
  EXPECT_DOUBLE_EQ(history.recent_bytes(SegmentId{1}, at_hour(48)), 750);
  EXPECT_DOUBLE_EQ(history.recent_bytes(SegmentId{2}, at_hour(48)), 0);
}

TEST(AccessHistoryTest, SegmentsThatAreGoneAreForgotten) {
  AccessHistory history;
  history.note(SegmentId{1}, 1000, at_hour(0));
  history.note(SegmentId{2}, 1000, at_hour(0));
  history.keep([](SegmentId id) { return id == SegmentId{2}; });
  EXPECT_DOUBLE_EQ(history.recent_bytes(SegmentId{1}, at_hour(0)), 0);
  EXPECT_DOUBLE_EQ(history.recent_bytes(SegmentId{2}, at_hour(0)), 1000);
}

}  // namespace
}  // namespace vmshadow::store
