// Durations as Prometheus counts them: each in the first bucket whose bound it is below.
#include <gtest/gtest.h>

#include "base/duration_buckets.h"

namespace vmshadow {
namespace {

using std::chrono::microseconds;

TEST(DurationBuckets, BoundsDoubleFromAQuarterMillisecond) {
  EXPECT_EQ(DurationBuckets::bound(0), microseconds(250));
  EXPECT_EQ(DurationBuckets::bound(2), microseconds(1000));
  EXPECT_EQ(DurationBuckets::bound(DurationBuckets::kBounds - 1), microseconds(8'192'000));
}

TEST(DurationBuckets, EachIsCountedOnceAndTheSumIsExact) {
  DurationBuckets buckets;
  for (const int us : {-5, 0, 249, 250, 999, 1000, 8'191'999, 8'192'000, 360'000'000}) {
    buckets.add(microseconds(us));
  }
  const DurationBuckets::Counts counts = buckets.counts();
  EXPECT_EQ(counts.count(), 9U);
  EXPECT_EQ(counts.sum, microseconds(249 + 250 + 999 + 1000 + 8'191'999 + 8'192'000 + 360'000'000));
  EXPECT_EQ(counts.buckets[0], 3U);  // below 250 µs, what is negative too
  EXPECT_EQ(counts.buckets[1], 1U);
  EXPECT_EQ(counts.buckets[2], 1U);
  EXPECT_EQ(counts.buckets[3], 1U);
  EXPECT_EQ(counts.buckets[DurationBuckets::kBounds - 1], 1U);
  EXPECT_EQ(counts.buckets[DurationBuckets::kBounds], 2U);
}

}  // namespace
}  // namespace vmshadow
