// A VM as a cadence sees it: pages that go dirty between two epochs, and what they cost. Hot pages
// are dirty again and again, so their number is bounded.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <deque>
#include <functional>
#include <vector>

#include "capture/cadence.h"

namespace vmshadow::test {

struct SimulatedVm {
  double dirty_pages_per_s = 1000;
  double hot_pages = 1e9;  ///< at most so many are dirty at once
  double pause_fixed_us = 500;
  double pause_us_per_page = 2;
  double latency_fixed_us = 2000;
  double latency_us_per_page = 3;
  double cpu_us_per_page = 1;
  unsigned epochs_under_way = 1;  ///< an epoch's latency is known this many epochs later
};

[[nodiscard]] inline double dirty_pages(const SimulatedVm& vm, std::chrono::microseconds interval) {
  // Random writes among the hot pages: the share still clean falls exponentially.
  const double written = vm.dirty_pages_per_s * static_cast<double>(interval.count()) / 1e6;
  return vm.hot_pages * -std::expm1(-written / vm.hot_pages);
}
[[nodiscard]] inline std::chrono::microseconds pause_of(const SimulatedVm& vm,
                                                        std::chrono::microseconds interval) {
  return std::chrono::microseconds(
      std::llround(vm.pause_fixed_us + vm.pause_us_per_page * dirty_pages(vm, interval)));
}
[[nodiscard]] inline std::chrono::microseconds latency_of(const SimulatedVm& vm,
                                                          std::chrono::microseconds interval) {
  return std::chrono::microseconds(
      std::llround(vm.latency_fixed_us + vm.latency_us_per_page * dirty_pages(vm, interval)));
}

/// Takes `epochs` epochs of the VM at the cadence's interval; the intervals, one each. `noise` is
/// what a duration is multiplied with.
inline std::vector<std::chrono::microseconds> run_epochs(
    capture::Cadence& cadence, const SimulatedVm& vm, unsigned epochs,
    const std::function<double()>& noise = [] { return 1.0; }) {
  const auto noisy = [&](std::chrono::microseconds d) {
    return std::chrono::microseconds(std::llround(static_cast<double>(d.count()) * noise()));
  };
  std::vector<std::chrono::microseconds> intervals;
  std::deque<std::chrono::microseconds> under_way;
  for (unsigned i = 0; i < epochs; ++i) {
    const auto interval = cadence.interval();
    const double pages = dirty_pages(vm, interval);
    under_way.push_back(noisy(latency_of(vm, interval)));
    if (under_way.size() > vm.epochs_under_way) {
      cadence.durable(under_way.front());
      under_way.pop_front();
    }
    capture::EpochCost cost;
    cost.pause = noisy(pause_of(vm, interval));
    cost.cpu = std::chrono::microseconds(std::llround(vm.cpu_us_per_page * pages));
    cost.period = interval;
    cost.pages = static_cast<std::uint64_t>(pages);
    cadence.taken(cost);
    intervals.push_back(interval);
  }
  return intervals;
}

}  // namespace vmshadow::test
