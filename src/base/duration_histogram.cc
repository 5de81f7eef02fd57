#include "base/duration_histogram.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace vmshadow {

// A value keeps its kBitsPerDoubling + 1 leading bits; what is shifted out chooses the row of
// buckets. Rows join without a gap: the first value of a row is one more than the last of the row
// before it.
std::size_t DurationHistogram::bucket_of(std::uint64_t us) {
  const auto bits = static_cast<unsigned>(std::bit_width(us));
  const unsigned shift = bits > kBitsPerDoubling + 1 ? bits - kBitsPerDoubling - 1 : 0;
  return (std::size_t{shift} << kBitsPerDoubling) + (us >> shift);
}

std::uint64_t DurationHistogram::middle_of(std::size_t bucket) {
  const std::size_t row = bucket >> kBitsPerDoubling;
  const std::size_t shift = row > 0 ? row - 1 : 0;
  const std::uint64_t lowest = (bucket - (shift << kBitsPerDoubling)) << shift;
  return lowest + (std::uint64_t{1} << shift) / 2;
}

void DurationHistogram::add(Duration d) {
  const Duration counted = std::max(d, Duration{0});
  constexpr std::uint64_t kMost = (std::uint64_t{1} << kValueBitsMax) - 1;
  ++buckets_[bucket_of(std::min(static_cast<std::uint64_t>(counted.count()), kMost))];
  ++count_;
  sum_ += counted;
  longest_ = std::max(longest_, counted);
}

DurationHistogram::Duration DurationHistogram::quantile(double q) const {
  if (count_ == 0) return Duration{0};
  const double rank = std::ceil(std::clamp(q, 0.0, 1.0) * static_cast<double>(count_));
  const auto wanted = std::max<std::uint64_t>(static_cast<std::uint64_t>(rank), 1);
  std::uint64_t seen = 0;
  for (std::size_t bucket = 0; bucket < buckets_.size(); ++bucket) {
    seen += buckets_[bucket];
    if (seen < wanted) continue;
    return std::min(Duration{static_cast<Duration::rep>(middle_of(bucket))}, longest_);
  }
  return longest_;
}

}  // namespace vmshadow
