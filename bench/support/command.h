// Other programs: run one to its end and take what it printed, or start one that is killed later.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include <vmshadow/result.h>

#include "base/unique_fd.h"

namespace vmshadow::bench {

/// Where in PATH a program is; nullopt if it is not installed.
[[nodiscard]] std::optional<std::string> find_program(const std::string& name);

/// A running program whose stdout is a pipe. Killed by the destructor, and by the kernel should the
/// thread that started it end first.
class ChildProgram {
 public:
  /// argv[0] is looked up in PATH.
  [[nodiscard]] static Result<ChildProgram> start(const std::vector<std::string>& argv);
  ChildProgram(ChildProgram&& other) noexcept;
  ChildProgram& operator=(ChildProgram&&) = delete;
  ~ChildProgram();

  /// The next line of its output, without the newline; Errc::closed at the end.
  [[nodiscard]] Result<std::string> read_line();
  /// Everything it still prints.
  [[nodiscard]] Result<std::string> read_all();
  /// Waits for its end: the exit code, or 128 + the signal.
  [[nodiscard]] int wait();
  /// SIGKILL, and waits.
  void kill();

 private:
  ChildProgram(pid_t pid, UniqueFd output) : pid_(pid), output_(std::move(output)) {}
  [[nodiscard]] Result<bool> fill();  ///< false at the end
  pid_t pid_;
  UniqueFd output_;
  std::string buffer_;
};

/// Runs a program to its end; its stdout. Errc::io with its exit code if that is not 0.
[[nodiscard]] Result<std::string> run_program(const std::vector<std::string>& argv);

}  // namespace vmshadow::bench
