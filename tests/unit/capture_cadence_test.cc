// The cadence over synthetic traces: what it settles at, and what it says when it cannot hold what
// was asked for. (Whole ranges of machines: tests/property/cadence_property_test.cc.)
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "capture/cadence.h"
#include "support/simulated_vm.h"

namespace vmshadow::capture {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using ::testing::HasSubstr;

double ms(microseconds d) { return static_cast<double>(d.count()) / 1000; }

CadenceOptions target(milliseconds lag, double budget = 0.05) {
  CadenceOptions options;
  options.target_lag = lag;
  options.pause_budget = budget;
  return options;
}

test::SimulatedVm quiet_vm() {
  test::SimulatedVm vm;
  vm.dirty_pages_per_s = 100;
  vm.pause_fixed_us = 500;
  vm.latency_fixed_us = 4000;
  return vm;
}
test::SimulatedVm busy_vm() {
  test::SimulatedVm vm;
  vm.dirty_pages_per_s = 200'000;
  vm.hot_pages = 8'000;
  vm.pause_us_per_page = 2;
  vm.latency_us_per_page = 4;
  return vm;
}

TEST(Cadence, AQuietVmGetsTheWidestIntervalThatHoldsTheLag) {
  Cadence cadence(target(milliseconds(500)));
  test::run_epochs(cadence, quiet_vm(), 60);
  EXPECT_LE(ms(cadence.interval()) + 4, 500);
  EXPECT_GE(ms(cadence.interval()), 350);
  EXPECT_EQ(cadence.limit(), Cadence::Limit::target_lag);
  EXPECT_EQ(cadence.cannot_hold(), std::nullopt);
  EXPECT_NEAR(cadence.dirty_pages_per_s(), 100, 5);
}

TEST(Cadence, WidensUntilThePauseBudgetIsHeldAndSaysWhatCanBe) {
  // Its hot 8,000 pages are dirty after 40 ms: 16.5 ms of pause an epoch, whatever the interval.
  Cadence cadence(target(milliseconds(100)));
  test::run_epochs(cadence, busy_vm(), 80);
  EXPECT_LE(16.5 / ms(cadence.interval()), 0.05);
  EXPECT_GE(16.5 / ms(cadence.interval()), 0.04);
  EXPECT_EQ(cadence.limit(), Cadence::Limit::pause_budget);
  ASSERT_TRUE(cadence.cannot_hold());
  for (const char* words : {"the target lag of 100 ms cannot be held", "pauses the guest for 1",
                            "a pause budget of 5.0 % allows one in 3", "can be, or the target"}) {
    EXPECT_THAT(*cadence.cannot_hold(), HasSubstr(words));
  }
}

TEST(Cadence, ALooserBudgetHoldsTheLag) {
  Cadence cadence(target(milliseconds(200), 0.25));
  test::run_epochs(cadence, busy_vm(), 80);
  EXPECT_LE(ms(cadence.interval()) + 34, 200);
  EXPECT_EQ(cadence.cannot_hold(), std::nullopt);
}

TEST(Cadence, ALatencyBeyondTheTargetIsSaidAndDoesNotRunAway) {
  test::SimulatedVm vm = quiet_vm();
  vm.latency_fixed_us = 300'000;
  Cadence cadence(target(milliseconds(100)));
  test::run_epochs(cadence, vm, 60);
  EXPECT_NEAR(ms(cadence.interval()), 75, 8);
  EXPECT_EQ(cadence.limit(), Cadence::Limit::latency);
  ASSERT_TRUE(cadence.cannot_hold());
  EXPECT_THAT(*cadence.cannot_hold(),
              HasSubstr("an epoch is durable 300 ms after its cut; about 3"));
}

TEST(Cadence, ABudgetThatNoIntervalHoldsStopsAtPausesFarBelowTheGuards) {
  test::SimulatedVm vm = busy_vm();
  vm.hot_pages = 1'000'000'000;  // every write is another page: wider is no better
  const CadenceOptions options = target(milliseconds(100));
  Cadence cadence(options);
  test::run_epochs(cadence, vm, 100);
  EXPECT_LE(test::pause_of(vm, cadence.interval()), options.pause_max * 115 / 100);
  ASSERT_TRUE(cadence.cannot_hold());
  EXPECT_THAT(*cadence.cannot_hold(), HasSubstr("the pause budget of 5.0 % cannot be held"));
}

// Longer pauses than pause_max allows for if they grew with the interval; but they do not.
TEST(Cadence, NearTheGuardsDeadlineItWidensInSmallStepsAndFindsThatPausesDoNotGrow) {
  CadenceOptions options = target(milliseconds(500));
  options.pause_max = milliseconds(150);
  test::SimulatedVm vm = busy_vm();
  vm.hot_pages = 60'000;
  vm.dirty_pages_per_s = 2'000'000;  // all of them within 100 ms: 120 ms of pause
  Cadence cadence(options);
  const auto intervals = test::run_epochs(cadence, vm, 80);
  for (std::size_t i = 1; i < intervals.size(); ++i) {
    EXPECT_LE(intervals[i], intervals[i - 1] * 5 / 4) << i;
  }
  EXPECT_GE(ms(cadence.interval()), 120 / 0.05);
  EXPECT_EQ(cadence.limit(), Cadence::Limit::pause_budget);
}

TEST(Cadence, TheCpuBudgetWidensToo) {
  CadenceOptions options = target(milliseconds(100), 0.5);
  options.cpu_budget = 0.1;
  test::SimulatedVm vm = busy_vm();
  vm.cpu_us_per_page = 5;  // 40 ms an epoch
  Cadence cadence(options);
  test::run_epochs(cadence, vm, 80);
  EXPECT_LE(40 / ms(cadence.interval()), 0.1);
  EXPECT_GE(40 / ms(cadence.interval()), 0.08);
  EXPECT_EQ(cadence.limit(), Cadence::Limit::cpu_budget);
  ASSERT_TRUE(cadence.cannot_hold());
  EXPECT_THAT(*cadence.cannot_hold(), HasSubstr("so a CPU budget of 10 % allows one in"));
}

TEST(Cadence, FollowsAVmThatChangesAndSaysSoOnce) {
  Cadence cadence(target(milliseconds(100)));
  test::run_epochs(cadence, quiet_vm(), 60);
  EXPECT_LE(ms(cadence.interval()), 100);
  test::run_epochs(cadence, busy_vm(), 80);
  EXPECT_GE(ms(cadence.interval()), 300);
  EXPECT_TRUE(cadence.cannot_hold());
  test::run_epochs(cadence, quiet_vm(), 80);
  EXPECT_LE(ms(cadence.interval()), 100);
  EXPECT_EQ(cadence.cannot_hold(), std::nullopt);
}

TEST(Cadence, AStepIsBounded) {
  Cadence cadence(target(milliseconds(100)));
  EpochCost cost;
  cost.pause = milliseconds(100);
  const auto before = cadence.interval();
  cadence.taken(cost);
  EXPECT_EQ(cadence.interval(), 2 * before);
  cost.pause = microseconds(0);
  Cadence wide(target(milliseconds(10'000)));
  wide.durable(milliseconds(9'000));
  wide.taken(cost);
  EXPECT_EQ(wide.interval(), milliseconds(4'000));
}

}  // namespace
}  // namespace vmshadow::capture
