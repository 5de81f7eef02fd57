// A MetricsServer in a process of its own, for a program whose other processes must not be held up
// by it, and die and are started again while it goes on. What it shows lies in memory they share.
#pragma once

#include <sys/types.h>

#include <functional>
#include <string>

#include <vmshadow/result.h>

#include "app/metrics_server.h"

namespace vmshadow::app {

class MetricsProcess {
 public:
  /// Its name as ps and top show it.
  static constexpr const char* kName = "vms-metrics";

  /// Forks: call before any thread is started. The child has low priority, leaves the terminal's
  /// signals alone, and dies with the calling process, whatever ends that. Writes the first file,
  /// if one is asked for: Errc::permission and friends if it cannot be.
  [[nodiscard]] static Result<MetricsProcess> start(
      MetricsServer::Options options, const std::function<std::string()>& page,
      const std::function<void(const std::string&)>& say);
  MetricsProcess(MetricsProcess&& other) noexcept;
  MetricsProcess& operator=(MetricsProcess&&) = delete;
  /// Ends it, and removes the file: its figures would be taken for this hour's.
  ~MetricsProcess();

 private:
  MetricsProcess(pid_t pid, std::string file) : pid_(pid), file_(std::move(file)) {}
  pid_t pid_;
  std::string file_;
};

}  // namespace vmshadow::app
