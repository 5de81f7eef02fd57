// Steps of the clock on the wall. Somebody sets it, or it is set right after a start with a wrong
// one: all that was dated before then looks older than it is. Whoever ran meanwhile can tell, as
// the monotonic clock does not jump. (It stands still while a host is suspended, which so looks
// like a step as well.)
#pragma once

#include <chrono>
#include <deque>
#include <optional>

#include <vmshadow/clock.h>

namespace vmshadow::store {

/// Since it was made. Of steps back it only takes back what it made of steps ahead: what is dated
/// after now can be seen to be.
class ClockSteps {
 public:
  /// Less than this is no step: it may be the looking.
  static constexpr std::chrono::seconds kStepMin{5};

  explicit ClockSteps(const Clock& clock);

  /// To be called now and then: what happens between two looks is told less well the further they
  /// are apart. Returns the step since the last one, 0 if there is none; negative: back.
  std::chrono::nanoseconds look();
  /// When that was which is dated `time`, by the clock as it is set now.
  [[nodiscard]] WallTime by_present_clock(WallTime time) const;

 private:
  struct Look {
    MonotonicTime monotonic;
    WallTime wall;
  };
  /// What is dated up to `before` was so much longer ago.
  struct Step {
    WallTime before;
    std::chrono::nanoseconds ahead;
  };
  [[nodiscard]] std::optional<Look> read() const;

  const Clock& clock_;
  std::optional<Look> last_;
  std::deque<Step> steps_;  ///< ahead, oldest first
};

}  // namespace vmshadow::store
