// The same work for several VMs at once: one thread each, started together.
#pragma once

#include <barrier>
#include <functional>
#include <thread>
#include <vector>

#include <vmshadow/result.h>

#include "support/stopwatch.h"

namespace vmshadow::bench {

/// Calls work(0) … work(count - 1), each in its thread; the seconds from their common start to the
/// end of the last one, or the first error.
[[nodiscard]] inline Result<double> run_together(std::size_t count,
                                                 const std::function<Status(std::size_t)>& work) {
  std::vector<Status> results(count);
  std::barrier start(static_cast<std::ptrdiff_t>(count) + 1);
  std::vector<std::jthread> threads;
  for (std::size_t i = 0; i < count; ++i) {
    threads.emplace_back([&, i] {
      start.arrive_and_wait();
      results[i] = work(i);
    });
  }
  start.arrive_and_wait();
  const Stopwatch watch;
  threads.clear();  // joins
  const double seconds = watch.seconds();
  for (Status& result : results) VMSHADOW_TRY(std::move(result));
  return seconds;
}

}  // namespace vmshadow::bench
