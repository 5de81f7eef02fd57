// What guard and worker share: one page of memory, written by the worker, read by the guard.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include <vmshadow/clock.h>

#include "capture/migration_settings.h"

namespace vmshadow::capture {

struct GuardFlags {
  /// The worker is between telling QEMU to migrate and having released the VM: only then may the
  /// guard act on the VM.
  std::atomic<bool> migrating{false};
  /// The worker has put mirrors of disks into QEMU and not taken them out again.
  std::atomic<bool> mirroring{false};
  /// The worker lets QEMU complete a migration, and resumes the VM then: one that is found in
  /// postmigrate is ours to resume.
  std::atomic<bool> resume_owed{false};
  /// Since when the VM stands still for the worker (monotonic nanoseconds), 0 while it runs.
  std::atomic<std::int64_t> stopped_since_ns{0};
  /// Since when the VM is protected (monotonic nanoseconds), 0 before the first epoch.
  std::atomic<std::int64_t> protected_since_ns{0};
  /// Counts on while the worker is alive; one that stands still is a worker that hangs.
  std::atomic<std::uint32_t> beats{0};
  /// Workers started before this one, or tried to. Written by the guard.
  std::uint32_t restarts = 0;
  /// This worker's number, from 1: what GuardCounts::workers_started is while it lives. Written by
  /// the guard.
  std::uint64_t worker = 0;
  /// A socket to the guard, valid in the worker: takes what QEMU must be freed from if the worker
  /// does not die as it should, its monitor connection (qmp::Session::pass_connection) and those
  /// of disks' mirrors. Set by the guard.
  int to_guard = -1;
  /// What must be put back (MigrationSettings::text()); valid while `migrating`.
  std::array<char, MigrationSettings::kTextBytesMax + 1> settings{};
  static_assert(std::atomic<bool>::is_always_lock_free);
  static_assert(std::atomic<std::int64_t>::is_always_lock_free);
  static_assert(std::atomic<std::uint32_t>::is_always_lock_free);

  /// Sets `settings`, then `migrating`.
  void arm(const MigrationSettings& before);
  /// To be called at least every few seconds, by the thread that must not hang.
  void beat() { beats.fetch_add(1, std::memory_order_relaxed); }
  void protected_from(MonotonicTime now) { protected_since_ns = now.ns; }
  /// Before a worker is started.
  void clear();
};

}  // namespace vmshadow::capture
