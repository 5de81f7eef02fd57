#include "base/thread_priority.h"

#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

namespace vmshadow {

ThreadPriority lower_thread_priority(ThreadPriority wanted) {
  constexpr int kNicest = 19;
  if (wanted == ThreadPriority::idle) {
    const sched_param none{};
    if (::sched_setscheduler(0, SCHED_IDLE, &none) == 0) return ThreadPriority::idle;
  }
  // Linux keeps the nice value per thread, whatever POSIX says.
  if (wanted != ThreadPriority::normal &&
      ::setpriority(PRIO_PROCESS, static_cast<id_t>(::gettid()), kNicest) == 0) {
    return ThreadPriority::low;
  }
  return ThreadPriority::normal;
}

bool raise_thread_priority(pid_t thread) {
  const sched_param none{};
  return ::sched_setscheduler(thread, SCHED_OTHER, &none) == 0 &&
         ::setpriority(PRIO_PROCESS, static_cast<id_t>(thread), 0) == 0;
}

}  // namespace vmshadow
