// The process above the one that captures: whatever happens to the worker, the VM runs on.
//
//   guard ── fork ──► worker (attaches, captures, ships)
//     │  waits                │ exits by itself ──► guard exits with the same code
//     │                       │ is killed ────────► guard takes the monitor, ends the checkpoint,
//     │                       │                     sees the VM running, says so, exits with 1
//     │  watches the clock    │ keeps the VM stopped past the deadline ──► guard kills it, and so
//     on ▼
//   is killed ──► the worker is told (SIGTERM), leaves the VM in order, exits
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <string>

#include "capture/migration_settings.h"

namespace vmshadow::capture {

/// Shared between guard and worker.
struct GuardFlags {
  /// The worker is between telling QEMU to migrate and having released the VM: only then may the
  /// guard act on the VM.
  std::atomic<bool> migrating{false};
  /// Since when the worker has the VM stopped (monotonic nanoseconds), 0 while it runs.
  std::atomic<std::int64_t> stopped_since_ns{0};
  /// What must be put back (MigrationSettings::text()); valid while `migrating`.
  std::array<char, MigrationSettings::kTextBytesMax + 1> settings{};
  static_assert(std::atomic<bool>::is_always_lock_free);
  static_assert(std::atomic<std::int64_t>::is_always_lock_free);

  /// Sets `settings`, then `migrating`.
  void arm(const MigrationSettings& before);
};

struct GuardOptions {
  std::string monitor;  ///< path of the QMP socket to take over
  /// A worker that has kept the VM stopped for longer is killed.
  std::chrono::milliseconds pause_deadline{2000};
};

/// Forks, runs `worker` in the child and guards it; returns, in the parent, the exit code of the
/// program. Call before any thread is started. SIGINT, SIGTERM and SIGHUP to the guard end the
/// worker in order.
[[nodiscard]] int run_guarded(const GuardOptions& options,
                              const std::function<int(GuardFlags&)>& worker);

}  // namespace vmshadow::capture
