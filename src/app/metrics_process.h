// A MetricsServer in a process of its own, for a program whose other processes must not be held up
// by it, and die and are started again while it goes on. What it shows lies in memory they share.
#pragma once

#include <sys/types.h>

#include <vmshadow/result.h>

#include "app/metrics_server.h"

namespace vmshadow::app {

class MetricsProcess {
 public:
  /// Its name as ps and top show it.
  static constexpr const char* kName = "vms-metrics";

  /// Forks: call before any thread is started. The child touches network and files, not we. It has
  /// low priority, leaves the terminal's signals alone, and ends, with its file, when the calling
  /// process does, whatever ends that. `calls` are made in the child.
  [[nodiscard]] static Result<MetricsProcess> start(MetricsServer::Options options,
                                                    MetricsServer::Calls calls);
  MetricsProcess(MetricsProcess&& other) noexcept;
  MetricsProcess& operator=(MetricsProcess&&) = delete;
  /// Ends it. Does not wait for one that hangs in a file system.
  ~MetricsProcess();

 private:
  explicit MetricsProcess(pid_t pid) : pid_(pid) {}
  [[nodiscard]] bool ends_within(std::chrono::milliseconds patience) const;
  pid_t pid_;
};

}  // namespace vmshadow::app
