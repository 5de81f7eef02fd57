// The process above the one that captures: whatever happens to the worker, the VM runs on, and it
// is protected again.
//
//   ┌──────────────────────── wait (1 s, doubling to retry_most) ◄─────────────────────┐
//   ▼                                                                                  │
//   start ─ fork ─► worker (attaches, captures, ships)                                 │
//   watch                │ ends because of the link, the store, QEMU ──────────────────┤
//     │                  │ is killed ─────────────────────────┐                        │
//     │ the clock        │ keeps the VM stopped too long,     ├─► release the VM, see  │
//     │ signals          │ hangs, is stopped: the guard kills ┘   it run, say so ──────┘
//     │                  │ ends for good (told to, done, cannot be protected) ─► exit, its code
//     ▼                  └ finds the VM gone ─► exit 3
//   is killed ──► the worker is told (SIGTERM), leaves the VM in order, exits
//
// The guard has one thread, locks its memory, runs before ordinary processes where it may, and
// allocates nothing while it watches. It learns of the VM's stops through GuardFlags.
#pragma once

#include <chrono>
#include <functional>
#include <string>

#include "capture/guard_counts.h"
#include "capture/guard_flags.h"

namespace vmshadow::capture {

/// How a worker ends, and the program: its exit codes.
enum WorkerExit : int {
  kWorkerDone = 0,
  kWorkerFailed = 1,     ///< for good: trying again would not help
  kWorkerVmGone = 3,     ///< the VM has ended
  kWorkerTryAgain = 75,  ///< of the worker alone (EX_TEMPFAIL): start another one
};

struct GuardOptions {
  std::string monitor;  ///< path of the QMP socket to take over
  /// Path of a second QMP socket, for the guard alone: held open in advance. Empty: there is none,
  /// `monitor` is free once the worker is dead.
  std::string own_monitor;
  /// A worker that keeps the VM stopped for longer is killed, and so is one that itself has been
  /// stopped (SIGSTOP) for longer.
  std::chrono::milliseconds pause_deadline{300};
  /// A worker that shows no sign of life for so long while the VM runs is killed.
  std::chrono::milliseconds silence{30'000};
  /// The longest wait before another worker is started: from 1 s it doubles up to this, and begins
  /// anew once a protection has held for a minute.
  std::chrono::milliseconds retry_most{60'000};
  /// End instead of starting another worker.
  bool once = false;
  /// Say what the system let the guard have.
  bool verbose = false;
  /// Where it counts what it does; outlives the guard. May be null.
  GuardCounts* counts = nullptr;
};

/// Forks, runs `worker` in the child and guards it, again and again; returns, in the parent, the
/// exit code of the program. Call before any thread is started. SIGINT and SIGTERM end the worker
/// in order, and the program with it; so does SIGHUP if the program has a terminal (it was closed),
/// while without one it means nothing.
[[nodiscard]] int run_guarded(const GuardOptions& options,
                              const std::function<int(GuardFlags&)>& worker);

}  // namespace vmshadow::capture
