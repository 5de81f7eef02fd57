// How much of each segment was read lately by who wants epochs (restores, exports, sidecars that
// protect a VM again; not the store's own upkeep). What was read a day ago counts half. Since the
// store was opened; safe from several threads.
#pragma once

#include <chrono>
#include <cmath>
#include <cstdint>
#include <map>
#include <mutex>

#include <vmshadow/clock.h>
#include <vmshadow/types.h>

namespace vmshadow::store {

class AccessHistory {
 public:
  static constexpr std::chrono::hours kHalfLife{24};

  void note(SegmentId segment, std::uint64_t bytes, MonotonicTime now) {
    const std::lock_guard lock(mutex_);
    Access& access = segments_[segment];
    access.bytes = faded(access, now) + static_cast<double>(bytes);
    access.at = now;
  }
  /// Bytes read of it, faded.
  [[nodiscard]] double recent_bytes(SegmentId segment, MonotonicTime now) const {
    const std::lock_guard lock(mutex_);
    const auto found = segments_.find(segment);
    return found == segments_.end() ? 0 : faded(found->second, now);
  }
  /// Forgets the segments that `is_there(id)` does not know.
  template <class IsThere>
  void keep(const IsThere& is_there) {
    const std::lock_guard lock(mutex_);
    std::erase_if(segments_, [&](const auto& entry) { return !is_there(entry.first); });
  }

 private:
  struct Access {
    double bytes{};
    MonotonicTime at;
  };
  static double faded(const Access& access, MonotonicTime now) {
    const std::chrono::duration<double, std::chrono::hours::period> age = now - access.at;
    return access.bytes * std::exp2(-age.count() / kHalfLife.count());
  }

  mutable std::mutex mutex_;
  std::map<SegmentId, Access> segments_;
};

}  // namespace vmshadow::store
