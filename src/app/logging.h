// Logs of the daemons: one line a message on stderr, where a service manager or a person reads
// them.
#pragma once

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <string>

namespace vmshadow::app {

/// Sets up the process's logger. `program` opens each line.
inline void set_up_logging(const std::string& program, bool verbose) {
  auto logger = spdlog::stderr_logger_mt(program);
  logger->set_pattern("%Y-%m-%dT%H:%M:%S.%e %n %l: %v");
  logger->set_level(verbose ? spdlog::level::debug : spdlog::level::info);
  logger->flush_on(spdlog::level::info);
  spdlog::set_default_logger(std::move(logger));
}

}  // namespace vmshadow::app
