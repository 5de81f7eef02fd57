// The process above the one that captures: whatever happens to the worker, the VM runs on.
//
//   guard ── fork ──► worker (attaches, captures, ships)
//     │  waits                │ exits by itself ──► guard exits with the same code
//     │                       │ is killed ────────► guard takes the monitor, ends the checkpoint,
//     ▼                                             sees the VM running, says so, exits with 1
//   is killed ──► the worker is told (SIGTERM), leaves the VM in order, exits
#pragma once

#include <atomic>
#include <functional>
#include <string>

#include <vmshadow/result.h>

namespace vmshadow::capture {

/// Shared between guard and worker. The worker sets `migrating` before it tells QEMU to migrate and
/// clears it once the VM is released: only in between may the guard act on the VM.
struct GuardFlags {
  std::atomic<bool> migrating{false};
  static_assert(std::atomic<bool>::is_always_lock_free);
};

/// Forks, runs `worker` in the child and guards it; returns, in the parent, the exit code of the
/// program. Call before any thread is started. SIGINT and SIGTERM to the guard go on to the worker.
/// `monitor` is the path of the QMP socket to take over.
[[nodiscard]] int run_guarded(const std::string& monitor,
                              const std::function<int(GuardFlags&)>& worker);

}  // namespace vmshadow::capture
