// A QEMU process of ours: started from a QemuCommand, detached, its output in a log file.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>

#include <vmshadow/result.h>

#include "replay/qemu_command.h"

namespace vmshadow::replay {

/// Kills the process on destruction unless it was released: a QEMU that could not be restored into
/// must not linger. Used by one thread.
class QemuProcess {
 public:
  /// Starts `command` in a session of its own, its standard input /dev/null, its output appended to
  /// `log_path`. Errors name the missing executable or folder, and /dev/kvm where the machine needs
  /// it and it cannot be used.
  [[nodiscard]] static Result<QemuProcess> start(const QemuCommand& command,
                                                 const std::string& log_path);
  QemuProcess(QemuProcess&& other) noexcept;
  QemuProcess& operator=(QemuProcess&&) = delete;
  ~QemuProcess();

  [[nodiscard]] pid_t pid() const { return pid_; }
  /// nullopt while it runs, else how it ended, in words ("exited with status 1").
  [[nodiscard]] std::optional<std::string> ended();
  /// The last lines it wrote, on one line; empty if it wrote nothing.
  [[nodiscard]] std::string log_tail() const;
  [[nodiscard]] const std::string& log_path() const { return log_path_; }
  /// Lets it run on after this object (and this program) is gone.
  void release();

 private:
  QemuProcess(pid_t pid, std::string log_path) : pid_(pid), log_path_(std::move(log_path)) {}
  pid_t pid_ = -1;
  std::string log_path_;
  std::optional<std::string> ended_;
  bool released_ = false;
};

}  // namespace vmshadow::replay
