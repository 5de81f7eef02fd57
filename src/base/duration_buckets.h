// How long something took, many times over, counted as Prometheus' histograms are: 16 buckets, each
// twice as wide as the one before, from 250 µs to 8.192 s, and one for what is longer.
//
// Lock-free throughout, so that whoever reads can never hold up who counts; it may lie in memory
// that processes share, and one that is killed in the midst of add() leaves it usable.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>

namespace vmshadow {

class DurationBuckets {
 public:
  using Duration = std::chrono::microseconds;

  static constexpr std::size_t kBounds = 16;
  /// What is shorter than this is counted in bucket `i` at the latest.
  [[nodiscard]] static constexpr Duration bound(std::size_t i) {
    return Duration{Duration::rep{250} << i};
  }

  struct Counts {
    std::array<std::uint64_t, kBounds + 1> buckets{};  ///< not cumulative
    Duration sum{};
    [[nodiscard]] std::uint64_t count() const {
      std::uint64_t all = 0;
      for (const std::uint64_t one : buckets) all += one;
      return all;
    }
  };

  /// Safe from any thread. What is negative counts as 0.
  void add(Duration d) {
    const Duration counted = std::max(d, Duration{0});
    std::size_t i = 0;
    while (i < kBounds && counted >= bound(i)) ++i;
    buckets_[i].fetch_add(1, std::memory_order_relaxed);
    sum_us_.fetch_add(static_cast<std::uint64_t>(counted.count()), std::memory_order_relaxed);
  }

  /// Safe from any thread; beside an add() the sum may be one duration ahead or behind.
  [[nodiscard]] Counts counts() const {
    Counts counts;
    for (std::size_t i = 0; i < buckets_.size(); ++i) {
      counts.buckets[i] = buckets_[i].load(std::memory_order_relaxed);
    }
    counts.sum = Duration{static_cast<Duration::rep>(sum_us_.load(std::memory_order_relaxed))};
    return counts;
  }

 private:
  std::array<std::atomic<std::uint64_t>, kBounds + 1> buckets_{};
  std::atomic<std::uint64_t> sum_us_{0};
  static_assert(std::atomic<std::uint64_t>::is_always_lock_free);
};

}  // namespace vmshadow
