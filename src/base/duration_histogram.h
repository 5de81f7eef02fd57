// How long something took, many times over, in a fixed 16 KiB: a count per bucket, the buckets
// growing with the value, as HdrHistogram's do.
//
//   microseconds   0 … 127         one bucket each: exact
//                  128 … 2^36 − 1  64 buckets for each doubling: a quantile is off by 1/128 at most
//                  2^36 …          (19 hours) counted as 2^36 − 1
//
// The count, the sum and the longest are exact. Used by one thread, or under its owner's lock.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>

namespace vmshadow {

class DurationHistogram {
 public:
  using Duration = std::chrono::microseconds;

  /// Counts one; what is negative counts as 0.
  void add(Duration d);

  [[nodiscard]] std::uint64_t count() const { return count_; }
  [[nodiscard]] Duration sum() const { return sum_; }
  [[nodiscard]] Duration longest() const { return longest_; }
  /// The `q`-quantile (0 … 1) by the nearest-rank method: the middle of the bucket that holds it,
  /// never more than longest(). 0 if nothing was counted.
  [[nodiscard]] Duration quantile(double q) const;

 private:
  static constexpr unsigned kBitsPerDoubling = 6;
  static constexpr unsigned kValueBitsMax = 36;
  static constexpr std::size_t kBuckets = std::size_t{kValueBitsMax - kBitsPerDoubling + 1}
                                          << kBitsPerDoubling;
  [[nodiscard]] static std::size_t bucket_of(std::uint64_t us);
  [[nodiscard]] static std::uint64_t middle_of(std::size_t bucket);

  std::array<std::uint64_t, kBuckets> buckets_{};
  std::uint64_t count_ = 0;
  Duration sum_{};
  Duration longest_{};
};

}  // namespace vmshadow
