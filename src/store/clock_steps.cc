#include "store/clock_steps.h"

#include <algorithm>

namespace vmshadow::store {

using std::chrono::nanoseconds;

namespace {

/// A clock that is set so often means nothing; the oldest are forgotten.
constexpr std::size_t kStepsMax = 64;

}  // namespace

ClockSteps::ClockSteps(const Clock& clock) : clock_(clock), last_(read()) {}

/// Nothing if something came between the two clocks.
std::optional<ClockSteps::Look> ClockSteps::read() const {
  const MonotonicTime before = clock_.monotonic();
  const WallTime wall = clock_.wall();
  if (clock_.monotonic() - before > kStepMin / 2) return std::nullopt;
  return Look{before, wall};
}

nanoseconds ClockSteps::look() {
  const auto now = read();
  if (!now) return {};
  const auto before = last_;
  last_ = now;
  if (!before) return {};
  const nanoseconds passed = now->monotonic - before->monotonic;
  const nanoseconds step = nanoseconds{now->wall.ns - before->wall.ns} - passed;
  if (step > -kStepMin && step < kStepMin) return {};
  if (step > nanoseconds{}) {
    steps_.push_back({WallTime{before->wall.ns + passed.count()}, step});
    if (steps_.size() > kStepsMax) steps_.pop_front();
    return step;
  }
  nanoseconds back = -step;
  while (!steps_.empty() && back > nanoseconds{}) {
    const nanoseconds taken = std::min(back, steps_.back().ahead);
    steps_.back().ahead -= taken;
    back -= taken;
    if (steps_.back().ahead == nanoseconds{}) steps_.pop_back();
  }
  return step;
}

WallTime ClockSteps::by_present_clock(WallTime time) const {
  for (const Step& step : steps_) {
    if (time <= step.before) time.ns += step.ahead.count();
  }
  return time;
}

}  // namespace vmshadow::store
