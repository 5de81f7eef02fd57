#include "capture/guard_priority.h"

#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/resource.h>

namespace vmshadow::capture {
namespace {

constexpr int kNiceBest = -20;

}  // namespace

GuardPriority::GuardPriority()
    : policy_(::sched_getscheduler(0)), nice_(::getpriority(PRIO_PROCESS, 0)) {
  ::sched_getparam(0, &param_);
}

std::string GuardPriority::raise() const {
  sched_param lowest{};
  lowest.sched_priority = ::sched_get_priority_min(SCHED_FIFO);
  if (::sched_setscheduler(0, SCHED_FIFO, &lowest) == 0) return "SCHED_FIFO";
  // Without the privilege the system allows no better value than RLIMIT_NICE says: try them all.
  for (int wanted = kNiceBest; wanted < nice_; ++wanted) {
    if (::setpriority(PRIO_PROCESS, 0, wanted) == 0) return fmt::format("nice {}", wanted);
  }
  return "ordinary priority";
}

void GuardPriority::lower() const {
  ::sched_setscheduler(0, policy_, &param_);
  ::setpriority(PRIO_PROCESS, 0, nice_);
}

// MCL_CURRENT alone: locking the future as well would have a later thread's stack counted, and
// refused, at the worst moment.
bool GuardPriority::lock_memory() { return ::mlockall(MCL_CURRENT) == 0; }

}  // namespace vmshadow::capture
