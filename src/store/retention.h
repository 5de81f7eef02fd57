// Which committed epochs of a VM are kept: a pure function of their times, the policy and the pins.
//
// Everything within the window; before it the newest of each minute, before that of each hour, then
// of each day, then nothing. Ages count back from the VM's newest epoch, not from the clock on the
// wall: the history of a VM that has stopped shipping (its host died, say) does not melt away while
// nobody looks. The newest epoch and pinned ones are always kept.
//
//   now ◄── window: all ──┤◄── one a minute ──┤◄── one an hour ──┤◄── one a day ──┤ gone
//
// Buckets are aligned to the Unix epoch, and a bucket is only thinned once all of it is older than
// the window: which epoch of a bucket stays never changes from one pass to the next.
#pragma once

#include <chrono>
#include <cstdint>
#include <set>
#include <span>
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
/// they have in `base`. Errc::invalid_argument names the part that cannot be read.
[[nodiscard]] Result<RetentionPolicy> parse_policy(const std::string& text,
                                                   const RetentionPolicy& base = {});
[[nodiscard]] std::string policy_text(const RetentionPolicy& policy);

struct DatedEpoch {
  Epoch epoch;
  WallTime committed;
};

/// The epochs (rising) that need not be kept any more, rising.
[[nodiscard]] std::vector<Epoch> epochs_to_drop(std::span<const DatedEpoch> epochs,
                                                const RetentionPolicy& policy,
                                                const std::set<Epoch>& pins);

}  // namespace vmshadow::store
