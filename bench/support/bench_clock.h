// A clock on which time runs faster. (For one that stands: tests/support/manual_clock.h.)
#pragma once

#include <vmshadow/clock.h>

namespace vmshadow::bench {

/// The wall clock `speed` times as fast as the machine's; monotonic time as it is.
class FastClock final : public Clock {
 public:
  explicit FastClock(std::int64_t speed) : speed_(speed) {}
  [[nodiscard]] MonotonicTime monotonic() const override { return system_clock().monotonic(); }
  [[nodiscard]] WallTime wall() const override {
    return WallTime{start_wall_.ns + (monotonic() - start_).count() * speed_};
  }

 private:
  const std::int64_t speed_;
  const MonotonicTime start_ = system_clock().monotonic();
  const WallTime start_wall_ = system_clock().wall();
};

}  // namespace vmshadow::bench
