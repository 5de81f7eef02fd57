// A MetricsServer in a thread of its own, for a program of one process.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <thread>

#include <vmshadow/result.h>

#include "app/metrics_server.h"
#include "base/unique_fd.h"

namespace vmshadow::app {

class MetricsThread {
 public:
  /// Writes the first file, if one is asked for: Errc::permission and friends if it cannot be.
  /// `page` and `say` are called on the thread, which runs at low priority.
  [[nodiscard]] static Result<std::unique_ptr<MetricsThread>> start(
      MetricsServer::Options options, std::function<std::string()> page,
      std::function<void(const std::string&)> say);
  /// Ends the thread, and removes the file: its figures would be taken for this hour's.
  ~MetricsThread();
  MetricsThread(const MetricsThread&) = delete;
  MetricsThread& operator=(const MetricsThread&) = delete;

 private:
  MetricsThread(MetricsServer::Options options, std::function<std::string()> page,
                std::function<void(const std::string&)> say, UniqueFd wake);

  const std::string file_;
  const UniqueFd wake_;
  MetricsServer server_;
  std::thread thread_;
};

}  // namespace vmshadow::app
