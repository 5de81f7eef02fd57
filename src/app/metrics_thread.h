// A MetricsServer in a thread of its own, for a program of one process.
#pragma once

#include <memory>
#include <thread>

#include <vmshadow/result.h>

#include "app/metrics_server.h"

namespace vmshadow::app {

class MetricsThread {
 public:
  /// `calls` are made on the thread, at the program's own priority: what a page is made from may
  /// take locks that the program's work needs.
  [[nodiscard]] static Result<std::unique_ptr<MetricsThread>> start(MetricsServer::Options options,
                                                                    MetricsServer::Calls calls);
  /// Ends the thread, and the file with it. One that hangs in a file system is left behind after a
  /// moment; it then asks for no page any more.
  ~MetricsThread();
  MetricsThread(const MetricsThread&) = delete;
  MetricsThread& operator=(const MetricsThread&) = delete;

 private:
  struct Shared;
  explicit MetricsThread(std::shared_ptr<Shared> shared);
  const std::shared_ptr<Shared> shared_;  // with the thread
  std::thread thread_;
};

}  // namespace vmshadow::app
