// Lets the guard run when its moment comes, whatever else the host does: its memory stays resident
// and it goes before ordinary processes. Each is a privilege: what the system refuses is done
// without.
#pragma once

#include <sched.h>

#include <string>

namespace vmshadow::capture {

class GuardPriority {
 public:
  /// Remembers what this process was started with, for the worker.
  GuardPriority();

  /// SCHED_FIFO at its lowest priority (before every ordinary process), else the best nice value.
  /// Says what it got: "SCHED_FIFO", "nice -20", "ordinary priority".
  [[nodiscard]] std::string raise() const;
  /// Back to what the process was started with: the worker's first step.
  void lower() const;
  /// Locks all memory of this process, also against copies after a fork, so after each. Not
  /// inherited. False if that is not allowed (CAP_IPC_LOCK, RLIMIT_MEMLOCK).
  [[nodiscard]] static bool lock_memory();

 private:
  int policy_;
  sched_param param_{};
  int nice_;
};

}  // namespace vmshadow::capture
