// How long to wait before the next try of something that failed: doubles from try to try.
#pragma once

#include <algorithm>
#include <chrono>
#include <utility>

namespace vmshadow::capture {

class BackOff {
 public:
  BackOff(std::chrono::milliseconds first, std::chrono::milliseconds most)
      : first_(first), most_(most), next_(first) {}

  /// The wait before the next try.
  [[nodiscard]] std::chrono::milliseconds next() {
    return std::exchange(next_, std::min(next_ * 2, most_));
  }
  /// All was well for a while: begin anew.
  void reset() { next_ = first_; }

 private:
  std::chrono::milliseconds first_;
  std::chrono::milliseconds most_;
  std::chrono::milliseconds next_;
};

}  // namespace vmshadow::capture
