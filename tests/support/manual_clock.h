// A clock that stands until it is advanced. Safe from any thread.
#pragma once

#include <atomic>
#include <chrono>

#include <vmshadow/clock.h>

namespace vmshadow::test {

class ManualClock final : public Clock {
 public:
  explicit ManualClock(WallTime start = WallTime{1'700'000'000'000'000'000}) : start_(start) {}
  [[nodiscard]] MonotonicTime monotonic() const override { return MonotonicTime{passed_ns_}; }
  [[nodiscard]] WallTime wall() const override {
    return WallTime{start_.ns + passed_ns_ + set_ahead_ns_};
  }
  void advance(std::chrono::nanoseconds by) { passed_ns_ += by.count(); }
  /// As if somebody set the clock on the wall; negative: back.
  void set_ahead(std::chrono::nanoseconds by) { set_ahead_ns_ += by.count(); }

 private:
  const WallTime start_;
  std::atomic<std::int64_t> passed_ns_{0};
  std::atomic<std::int64_t> set_ahead_ns_{0};
};

}  // namespace vmshadow::test
