// How urgent the calling thread is to the kernel's scheduler.
#pragma once

#include <sys/types.h>

namespace vmshadow {

enum class ThreadPriority {
  normal,
  low,   ///< nice 19
  idle,  ///< SCHED_IDLE: only what no other thread of this host (or control group) wants
};

/// Lowers the calling thread's priority; an unprivileged thread cannot raise it again. Returns what
/// it has now: a kernel or a sandbox that refuses `idle` gets `low`, else `normal`.
ThreadPriority lower_thread_priority(ThreadPriority wanted);
/// Gives a thread (gettid) back its normal priority; false where that is not allowed: it takes
/// root, CAP_SYS_NICE or RLIMIT_NICE.
bool raise_thread_priority(pid_t thread);

}  // namespace vmshadow
