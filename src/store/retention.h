// Which committed epochs of a VM are kept: a pure function of their times, the policy and the pins.
//
// Everything within the window; before it the newest of each minute, before that of each hour, then
// of each day, then nothing. Ages count back from the VM's newest epoch, not from the clock on the
// wall: the history of a VM that has stopped shipping (its host died, say) does not melt away while
// nobody looks. The newest epoch and pinned ones are always kept.
//
//   now ◄── window: all ──┤◄── one a minute ──┤◄── one an hour ──┤◄── one a day ──┤ gone
//
// Buckets are aligned to the Unix epoch, and a bucket is thinned (or dropped) only once all of it
// is behind the reach of the level before: which epoch of a bucket stays never changes from one
// pass to the next, and as an hour's newest epoch is the newest of its last minute, what a denser
// level has dropped no coarser one misses. Many passes as time goes by leave what one late pass
// leaves.
//
// Clocks jump. An epoch is dated by its own commit time alone, so nothing that is dropped dates
// others anew; of a bucket the highest number stays, whatever order the times are in. But:
//   - an epoch committed after one that is in the window is in it, too, however old its time says
//     it is (the clock was set back);
//   - one dated after the newest epoch stays until time has caught up with it.
// A clock that jumps ahead does age everything before: by the times alone it cannot be told from a
// long pause. A store that runs meanwhile can tell, and gives the times as they should be
// (clock_steps.h).
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include <vmshadow/clock.h>
#include <vmshadow/result.h>
#include <vmshadow/types.h>

namespace vmshadow::store {

/// How far back each density reaches, counted from the newest epoch; rising. 0 leaves a level out.
struct RetentionPolicy {
  std::chrono::seconds window{std::chrono::minutes(10)};
  std::chrono::seconds minutely{std::chrono::hours(1)};
  std::chrono::seconds hourly{std::chrono::hours(24)};
  std::chrono::seconds daily{std::chrono::hours(24 * 30)};
  bool operator==(const RetentionPolicy&) const = default;
};

/// Errc::invalid_argument if a reach is negative or a level reaches less far than a denser one
/// (unless it is 0).
[[nodiscard]] Status check_policy(const RetentionPolicy& policy);

/// "window=10m,minutely=1h,hourly=1d,daily=30d": any of them, in s, m, h or d; the others keep what
/// they have in `base`; the whole must pass check_policy(). A bare 0 needs no unit.
/// Errc::invalid_argument names the part that cannot be read.
[[nodiscard]] Result<RetentionPolicy> parse_policy(const std::string& text,
                                                   const RetentionPolicy& base = {});
/// All four, each in its largest whole unit: parse_policy() reads it back.
[[nodiscard]] std::string policy_text(const RetentionPolicy& policy);

struct DatedEpoch {
  Epoch epoch;
  WallTime committed;
};

/// Those of `epochs` (rising) that need not be kept any more, rising. Counted from the newest, so
/// that a VM that has stopped keeps its last window; from `now` if that is given and later. Linear.
[[nodiscard]] std::vector<Epoch> epochs_to_drop(std::span<const DatedEpoch> epochs,
                                                const RetentionPolicy& policy,
                                                const std::set<Epoch>& pins,
                                                std::optional<WallTime> now = {});

/// Epochs committed before this are thinned, to one a minute or less, seen from the newest; those
/// behind it are in the window, or of a minute that is not behind the window as a whole yet: all of
/// them are still there. (A level of hours is not waited for.)
[[nodiscard]] WallTime thinned_up_to(const RetentionPolicy& policy, WallTime newest);

}  // namespace vmshadow::store
