// A store's reader keeps every segment it may need open.
#pragma once

#include <sys/resource.h>

namespace vmshadow::app {

/// Lets this process open as many files as the system allows it to ask for.
inline void allow_many_open_files() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  (void)::setrlimit(RLIMIT_NOFILE, &limit);  // where it is refused, opening says so
}

}  // namespace vmshadow::app
