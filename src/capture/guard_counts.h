// What the guard has had to do so far, for metrics: written by the guard, read by anybody with whom
// the memory is shared, at any time.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

namespace vmshadow::capture {

struct GuardCounts {
  /// Why a worker was killed by the guard.
  enum Kill : std::size_t {
    kOverdue,  ///< it kept the VM stopped beyond the deadline
    kStopped,  ///< it was stopped itself
    kSilent,   ///< it hung
    kKills
  };

  std::atomic<std::uint64_t> workers_started{0};
  /// A worker is watched: the newest one that was started.
  std::atomic<bool> worker_lives{false};
  std::array<std::atomic<std::uint64_t>, kKills> killed{};
  /// How often a dead worker's capture had to be ended.
  std::atomic<std::uint64_t> releases{0};
};

}  // namespace vmshadow::capture
