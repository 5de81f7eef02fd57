// Laws of the cadence over whole ranges of machines, with noise: it stays in its bounds, settles
// without swinging, holds the pause budget wherever an interval does, and the lag wherever the
// budget allows it.
#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>

#include "capture/cadence.h"
#include "support/simulated_vm.h"

namespace vmshadow::capture {
namespace {

using std::chrono::microseconds;
using test::SimulatedVm;

constexpr unsigned kSettleEpochs = 150;
constexpr unsigned kWatchedEpochs = 200;

double between(int low, int high) { return *rc::gen::inRange(low, high); }

SimulatedVm any_vm() {
  SimulatedVm vm;
  vm.dirty_pages_per_s = std::pow(10.0, between(0, 600) / 100);
  vm.hot_pages = std::pow(10.0, between(100, 500) / 100);
  vm.pause_fixed_us = between(100, 10'000);
  vm.pause_us_per_page = between(1, 5);
  vm.latency_fixed_us = between(500, 50'000);
  // Encoding keeps up with the guest: else nothing settles but the guest's own bound.
  vm.latency_us_per_page = std::min(between(0, 10), 0.5e6 / vm.dirty_pages_per_s);
  vm.epochs_under_way = static_cast<unsigned>(*rc::gen::inRange(0, 4));
  return vm;
}
CadenceOptions any_options() {
  CadenceOptions options;
  options.target_lag = microseconds(*rc::gen::inRange(20'000, 5'000'000));
  options.pause_budget = between(1, 50) / 100;
  return options;
}

double share_paused(const SimulatedVm& vm, microseconds interval) {
  return static_cast<double>(test::pause_of(vm, interval).count()) /
         static_cast<double>(interval.count());
}

RC_GTEST_PROP(CadenceProperty, StaysInItsBoundsAndStepsWhateverItIsTold, ()) {
  const CadenceOptions options = any_options();
  Cadence cadence(options);
  const auto count = *rc::gen::inRange(1, 200);
  for (int i = 0; i < count; ++i) {
    const auto before = cadence.interval();
    cadence.durable(microseconds(*rc::gen::inRange(0, 100'000'000)));
    EpochCost cost;
    cost.pause = microseconds(*rc::gen::inRange(0, 10'000'000));
    cost.period = microseconds(*rc::gen::inRange(0, 10'000'000));
    cost.pages = *rc::gen::inRange<std::uint64_t>(0, 1'000'000);
    cadence.taken(cost);
    RC_ASSERT(cadence.interval() >= options.interval_min);
    RC_ASSERT(cadence.interval() <= options.interval_max);
    RC_ASSERT(cadence.interval() <= 2 * before);
    RC_ASSERT(cadence.interval() >= before * 79 / 100);
  }
}

RC_GTEST_PROP(CadenceProperty, SettlesWithoutNoiseAndStays, ()) {
  const SimulatedVm vm = any_vm();
  Cadence cadence(any_options());
  static_cast<void>(test::run_epochs(cadence, vm, kSettleEpochs));
  const auto intervals = test::run_epochs(cadence, vm, kWatchedEpochs);
  const auto [low, high] = std::minmax_element(intervals.begin(), intervals.end());
  RC_LOG() << low->count() << " to " << high->count() << " us\n";
  RC_ASSERT(high->count() <= low->count() * 115 / 100);
}

RC_GTEST_PROP(CadenceProperty, HoldsTheBudgetAndTheLagWhereverThatIsPossible, ()) {
  const SimulatedVm vm = any_vm();
  const CadenceOptions options = any_options();
  Cadence cadence(options);
  std::mt19937 random(*rc::gen::arbitrary<std::uint32_t>());
  std::uniform_real_distribution<double> noise(0.8, 1.2);
  const auto draw = [&] { return noise(random); };
  static_cast<void>(test::run_epochs(cadence, vm, kSettleEpochs, draw));
  const auto intervals = test::run_epochs(cadence, vm, kWatchedEpochs, draw);

  microseconds paused{};
  microseconds passed{};
  std::size_t turns = 0;
  for (std::size_t i = 0; i < intervals.size(); ++i) {
    paused += test::pause_of(vm, intervals[i]);
    passed += intervals[i];
    if (i >= 2 && (intervals[i] > intervals[i - 1]) != (intervals[i - 1] > intervals[i - 2]) &&
        intervals[i] != intervals[i - 1] && intervals[i - 1] != intervals[i - 2]) {
      ++turns;
    }
  }
  RC_LOG() << "interval " << intervals.back().count() << " us, " << turns << " turns\n";
  RC_ASSERT(turns <= kWatchedEpochs / 20);
  const double share = static_cast<double>(paused.count()) / static_cast<double>(passed.count());
  const bool possible = share_paused(vm, options.interval_max) <= options.pause_budget * 0.8 &&
                        test::pause_of(vm, options.interval_max) < options.pause_max;
  if (!possible) return;
  RC_ASSERT(share <= options.pause_budget * 1.02);
  // The interval that the lag asks for, if the budget is held there with room to spare.
  const auto latency = test::latency_of(vm, options.target_lag);
  const auto for_lag = (options.target_lag - latency * 3 / 2) * 8 / 10;
  if (for_lag < options.interval_min || for_lag < latency) return;
  if (share_paused(vm, for_lag) > options.pause_budget * 0.8) return;
  const auto longest = *std::max_element(intervals.begin(), intervals.end());
  RC_ASSERT(longest + test::latency_of(vm, longest) <= options.target_lag);
}

}  // namespace
}  // namespace vmshadow::capture
