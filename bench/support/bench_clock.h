// Clocks that a benchmark sets: time that stands, and time that runs faster.
#pragma once

#include <atomic>
#include <chrono>

#include <vmshadow/clock.h>

namespace vmshadow::bench {

/// Stands until it is advanced. Safe from any thread.
class ManualClock final : public Clock {
 public:
  explicit ManualClock(WallTime start) : start_(start) {}
  [[nodiscard]] MonotonicTime monotonic() const override { return MonotonicTime{passed_ns_}; }
  [[nodiscard]] WallTime wall() const override { return WallTime{start_.ns + passed_ns_}; }
  void advance(std::chrono::nanoseconds by) { passed_ns_ += by.count(); }

 private:
  const WallTime start_;
  std::atomic<std::int64_t> passed_ns_{0};
};

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
