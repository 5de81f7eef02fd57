// How urgent the calling thread is to the kernel's scheduler.
#pragma once

namespace vmshadow {

enum class ThreadPriority {
  normal,
  low,   ///< nice 19
  idle,  ///< SCHED_IDLE: only what no other thread of this host (or control group) wants
};

/// Lowers the calling thread's priority; an unprivileged thread cannot raise it again. Returns what
/// it has now: a kernel or a sandbox that refuses `idle` gets `low`, else `normal`.
ThreadPriority lower_thread_priority(ThreadPriority wanted);

}  // namespace vmshadow
