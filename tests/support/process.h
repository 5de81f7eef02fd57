// A child process that cannot outlive the test: killed by the destructor, and by the kernel should
// the thread that spawned it end first (PR_SET_PDEATHSIG is bound to that thread).
#pragma once

#include <sys/types.h>

#include <chrono>
#include <string>
#include <vector>

#include <vmshadow/result.h>

#include "base/unique_fd.h"
#include "io/socket.h"

namespace vmshadow::test {

struct ExitStatus {
  int code{};    ///< exit code; -1 if a signal ended it
  int signal{};  ///< 0 if it exited
  bool operator==(const ExitStatus&) const = default;
  [[nodiscard]] bool success() const { return code == 0; }
  [[nodiscard]] std::string text() const;  ///< "exit code 1", "signal 9"
};

struct ProcessOptions {
  std::vector<std::string> argv{};  ///< argv[0] is looked up in PATH
  std::vector<std::string> env{};   ///< "NAME=value", over the parent's environment
  std::string stdout_file{};        ///< appended to; empty: as the parent's
  std::string stderr_file{};        ///< may be the same path
  bool stdout_pipe = false;         ///< instead of stdout_file: Process::stdout_fd()
  bool stdin_null = true;
};

/// True if such a program can be started: looked up in PATH, unless it names a folder.
[[nodiscard]] bool in_path(const std::string& program);

class Process {
 public:
  /// Errc::not_found and friends if the program cannot be started: known at once.
  [[nodiscard]] static Result<Process> spawn(const ProcessOptions& options);
  Process(Process&& other) noexcept;
  Process& operator=(Process&& other) noexcept;
  ~Process();

  [[nodiscard]] pid_t pid() const { return pid_; }
  [[nodiscard]] int stdout_fd() const { return stdout_.get(); }
  [[nodiscard]] bool running() const;
  /// Sends a signal; Errc::not_found once it has ended.
  [[nodiscard]] Status signal(int number) const;
  /// Waits for its end. Errc::timed_out: it still runs.
  [[nodiscard]] Result<ExitStatus> wait(io::Deadline deadline);
  /// SIGKILL and wait. Idempotent.
  void kill();
  /// User and system time used so far, its threads included.
  [[nodiscard]] Result<std::chrono::milliseconds> cpu_time() const;

 private:
  Process() = default;
  pid_t pid_ = -1;
  UniqueFd pidfd_;
  UniqueFd stdout_;
  bool ended_ = false;
  ExitStatus status_;
};

}  // namespace vmshadow::test
