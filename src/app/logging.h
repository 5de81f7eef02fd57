// Logs of the daemons: one line a message on stderr, where a service manager or a person reads
// them.
#pragma once

#include <spdlog/sinks/base_sink.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>

#include "base/say.h"

namespace vmshadow::app {

/// Stderr for a program that has a VM in its care: a line that a stalled reader does not take at
/// once is dropped, as say() does.
class NeverWaitingStderr final : public spdlog::sinks::base_sink<std::mutex> {
 private:
  void sink_it_(const spdlog::details::log_msg& message) override {
    spdlog::memory_buf_t text;
    formatter_->format(message, text);
    std::string_view line(text.data(), text.size());
    if (line.ends_with('\n')) line.remove_suffix(1);
    write_line(STDERR_FILENO, line);
  }
  void flush_() override {}
};

/// Sets up the process's logger. `program` opens each line.
inline void set_up_logging(
    const std::string& program, bool verbose,
    spdlog::sink_ptr sink = std::make_shared<spdlog::sinks::stderr_sink_mt>()) {
  auto logger = std::make_shared<spdlog::logger>(program, std::move(sink));
  logger->set_pattern("%Y-%m-%dT%H:%M:%S.%e %n %l: %v");
  logger->set_level(verbose ? spdlog::level::debug : spdlog::level::info);
  logger->flush_on(spdlog::level::info);
  spdlog::set_default_logger(std::move(logger));
}

}  // namespace vmshadow::app
