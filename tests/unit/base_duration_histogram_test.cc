#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "base/duration_histogram.h"
#include "base/statistics.h"

namespace vmshadow {
namespace {

using std::chrono::microseconds;

TEST(DurationHistogram, NothingCountedIsZero) {
  const DurationHistogram histogram;
  EXPECT_EQ(histogram.count(), 0U);
  EXPECT_EQ(histogram.quantile(0.5), microseconds(0));
  EXPECT_EQ(histogram.longest(), microseconds(0));
}

TEST(DurationHistogram, SmallValuesAreExact) {
  DurationHistogram histogram;
  for (int us = 127; us >= 0; --us) histogram.add(microseconds(us));
  EXPECT_EQ(histogram.quantile(0.5), microseconds(63));
  EXPECT_EQ(histogram.quantile(1), microseconds(127));
  EXPECT_EQ(histogram.quantile(0), microseconds(0));
  EXPECT_EQ(histogram.sum(), microseconds(127 * 64));
}

TEST(DurationHistogram, NegativeCountsAsZeroAndTheLongestIsExact) {
  DurationHistogram histogram;
  histogram.add(microseconds(-5));
  histogram.add(microseconds(1'234'567));
  EXPECT_EQ(histogram.count(), 2U);
  EXPECT_EQ(histogram.quantile(0.5), microseconds(0));
  EXPECT_EQ(histogram.longest(), microseconds(1'234'567));
  EXPECT_LE(histogram.quantile(1), histogram.longest());
}

TEST(DurationHistogram, WhatIsTooLongForTheBucketsStaysCounted) {
  DurationHistogram histogram;
  histogram.add(std::chrono::hours(1000));
  EXPECT_EQ(histogram.count(), 1U);
  EXPECT_EQ(histogram.longest(), std::chrono::hours(1000));
  EXPECT_GT(histogram.quantile(0.5), std::chrono::hours(18));
}

// Each boundary between rows of buckets, and both its neighbours.
TEST(DurationHistogram, OneValueIsGivenBackWithinAPart) {
  for (unsigned bits = 0; bits < 36; ++bits) {
    for (const std::int64_t step : {-1, 0, 1}) {
      const std::int64_t us = (std::int64_t{1} << bits) + step;
      DurationHistogram histogram;
      histogram.add(microseconds(us));
      histogram.add(microseconds(std::int64_t{1} << 40));  // so that `longest` bounds nothing
      const auto got = static_cast<double>(histogram.quantile(0.5).count());
      EXPECT_LE(std::abs(got - static_cast<double>(us)), static_cast<double>(us) / 128) << us;
    }
  }
}

TEST(DurationHistogram, QuantilesAreThoseOfTheValues) {
  std::mt19937 random(1);
  std::lognormal_distribution<double> pauses(8, 2);
  for (const std::size_t count : {1U, 2U, 10U, 5000U}) {
    DurationHistogram histogram;
    std::vector<double> values;
    for (std::size_t i = 0; i < count; ++i) {
      const double us = std::floor(pauses(random));
      values.push_back(us);
      histogram.add(microseconds(static_cast<std::int64_t>(us)));
    }
    for (const double q : {0.0, 0.01, 0.5, 0.9, 0.99, 1.0}) {
      const double exact = quantile(values, q);
      EXPECT_NEAR(static_cast<double>(histogram.quantile(q).count()), exact, exact / 128) << q;
    }
  }
}

}  // namespace
}  // namespace vmshadow
