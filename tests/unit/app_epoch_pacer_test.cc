#include <gtest/gtest.h>

#include "app/epoch_pacer.h"

namespace vmshadow::app {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

EpochStats paused_for(microseconds pause) {
  EpochStats stats;
  stats.pause = pause;
  stats.pages = 10;
  return stats;
}
MonotonicTime at(milliseconds since) { return MonotonicTime{} + since; }

TEST(EpochPacer, ASetIntervalStaysAndThePausedShareIsMeasured) {
  EpochPacer pacer(milliseconds(200), std::nullopt);
  EXPECT_EQ(pacer.report().pause_share, std::nullopt);
  for (int i = 0; i <= 10; ++i) {
    pacer.taken(paused_for(milliseconds(20)), at(milliseconds(200 * i)), microseconds(0));
  }
  EXPECT_EQ(pacer.interval(), milliseconds(200));
  const PaceReport report = pacer.report();
  ASSERT_TRUE(report.pause_share);
  EXPECT_DOUBLE_EQ(*report.pause_share, 0.1);
  EXPECT_DOUBLE_EQ(report.dirty_pages_per_s, 50);
  EXPECT_FALSE(report.asked_for);
  EXPECT_EQ(report.cannot_hold, std::nullopt);
}

TEST(EpochPacer, ACadenceIsFedByBothSidesButNotByTheFullPass) {
  capture::CadenceOptions options;
  options.target_lag = milliseconds(1000);
  EpochPacer pacer(milliseconds(200), options);
  ship::CommittedEpoch done;
  done.commit_latency = std::chrono::seconds(20);
  pacer.durable(done);  // the full pass
  done.commit_latency = milliseconds(100);
  auto now = milliseconds(0);
  for (int i = 0; i < 40; ++i) {
    pacer.taken(paused_for(milliseconds(1)), at(now), microseconds(100 * i));
    pacer.durable(done);
    now += std::chrono::duration_cast<milliseconds>(pacer.interval());
  }
  EXPECT_NEAR(static_cast<double>(pacer.interval().count()), 800'000, 80'000);
  const PaceReport report = pacer.report();
  EXPECT_EQ(report.limit, capture::Cadence::Limit::target_lag);
  EXPECT_EQ(report.cannot_hold, std::nullopt);
}

// Each epoch of it reads all RAM: what is dirty is what the encoder found changed, and no interval
// makes the lag shorter than a pass and its commit.
TEST(EpochPacer, FullPassesSayWhatLagTheyCanHold) {
  capture::CadenceOptions options;
  options.target_lag = milliseconds(1000);
  EpochPacer pacer(milliseconds(200), options);
  ship::CommittedEpoch done;
  done.commit_latency = std::chrono::seconds(20);
  pacer.durable(done);  // the first pass
  EXPECT_FALSE(pacer.report().passes);
  done.commit_latency = milliseconds(100);
  done.encoded.data_pages = 7;
  done.encoded.zero_pages = 3;
  for (int i = 0; i <= 20; ++i) {
    EpochStats stats = paused_for(milliseconds(5));
    stats.pages = 1'000'000;
    stats.pass = milliseconds(3000);
    pacer.taken(stats, at(milliseconds(3000 * i)), microseconds(0));
    pacer.durable(done);
  }
  const PaceReport report = pacer.report();
  ASSERT_TRUE(report.passes);
  EXPECT_EQ(report.passes->pass, milliseconds(3000));
  EXPECT_EQ(report.passes->lag, milliseconds(3100));
  EXPECT_NEAR(report.dirty_pages_per_s, 10.0 / 3, 0.2);
  EXPECT_EQ(report.limit, capture::Cadence::Limit::pass);
  EXPECT_NEAR(static_cast<double>(pacer.interval().count()), 3'000'000, 300'000);
  ASSERT_TRUE(report.cannot_hold);
  EXPECT_NE(report.cannot_hold->find("a pass over all RAM takes 3.0 s"), std::string::npos)
      << *report.cannot_hold;
}

// Its events were lost: the cadence goes by what was seen of the stop.
TEST(EpochPacer, AnUnknownPauseCountsAsWhatWasSeenOfIt) {
  EpochPacer pacer(milliseconds(100), std::nullopt);
  EpochStats stats;
  stats.stop = milliseconds(1);
  stats.cut = milliseconds(2);
  stats.ram = milliseconds(3);
  stats.device = milliseconds(4);
  pacer.taken(stats, at(milliseconds(0)), microseconds(0));
  pacer.taken(stats, at(milliseconds(100)), microseconds(0));
  EXPECT_DOUBLE_EQ(pacer.report().pause_share.value_or(0), 0.1);
}

}  // namespace
}  // namespace vmshadow::app
