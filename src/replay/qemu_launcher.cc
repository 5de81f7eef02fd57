#include "replay/qemu_launcher.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <utility>
#include <vector>

#include "base/unique_fd.h"

namespace vmshadow::replay {
namespace {

constexpr std::size_t kLogTailBytes = 1000;
constexpr const char* kKvmDevice = "/dev/kvm";

/// What went wrong in the child before it became QEMU.
struct ChildFailure {
  enum Step : int { chdir_step, exec_step } step;
  int errno_value;
};

Status check_kvm(const QemuCommand& command) {
  if (!command.needs_kvm) return {};
  const UniqueFd kvm(::open(kKvmDevice, O_RDWR | O_CLOEXEC));
  if (kvm) return {};
  return fail(Errc::unsupported,
              fmt::format("this VM ran under KVM, and {} cannot be used here ({}): enable "
                          "virtualization, or run as a member of group kvm",
                          kKvmDevice, std::strerror(errno)));
}

/// The executable, looked up in PATH if it is a bare name.
Result<std::string> find_executable(const std::string& name) {
  const auto missing = [&] {
    return fail(Errc::not_found,
                fmt::format("there is no QEMU executable '{}' here: install it, or name another "
                            "with --qemu",
                            name));
  };
  if (name.find('/') != std::string::npos) {
    if (::access(name.c_str(), X_OK) != 0) return missing();
    return name;
  }
  const char* const path_variable = ::getenv("PATH");
  const std::string path = path_variable == nullptr ? "/usr/bin:/bin" : path_variable;
  for (std::size_t start = 0; start <= path.size();) {
    const std::size_t end = std::min(path.find(':', start), path.size());
    const std::string candidate = path.substr(start, end - start) + "/" + name;
    if (::access(candidate.c_str(), X_OK) == 0) return candidate;
    start = end + 1;
  }
  return missing();
}

/// Our environment with `settings` in place of variables of the same names.
std::vector<std::string> environment_with(const std::vector<std::string>& settings) {
  std::vector<std::string> environment = settings;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string_view name_and_equals =
        std::string_view(*entry).substr(0, std::string_view(*entry).find('=') + 1);
    bool overridden = false;
    for (const std::string& setting : settings) overridden |= setting.starts_with(name_and_equals);
    if (!overridden) environment.emplace_back(*entry);
  }
  return environment;
}

std::vector<char*> pointers_to(const std::vector<std::string>& words) {
  std::vector<char*> pointers;
  for (const std::string& word : words) pointers.push_back(const_cast<char*>(word.c_str()));
  pointers.push_back(nullptr);
  return pointers;
}

/// Between fork and exec: async-signal-safe calls only.
[[noreturn]] void become_qemu(const char* executable, char* const* argv, char* const* environment,
                              const char* cwd, int null_fd, int log_fd, int failure_fd) {
  ::setsid();
  ::dup2(null_fd, STDIN_FILENO);
  ::dup2(log_fd, STDOUT_FILENO);
  ::dup2(log_fd, STDERR_FILENO);
  ::close_range(3, ~0U, CLOSE_RANGE_CLOEXEC);
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  ChildFailure failure{ChildFailure::chdir_step, 0};
  if (*cwd == '\0' || ::chdir(cwd) == 0) {
    failure.step = ChildFailure::exec_step;
    ::execve(executable, argv, environment);
  }
  failure.errno_value = errno;
  const ssize_t reported = ::write(failure_fd, &failure, sizeof failure);
  ::_exit(reported == sizeof failure ? 127 : 126);
}

/// Waits until the child has become QEMU (its end of the pipe closed) or said why not.
Status check_started(int failure_fd, const QemuCommand& command) {
  ChildFailure failure{};
  ssize_t got = 0;
  do {
    got = ::read(failure_fd, &failure, sizeof failure);
  } while (got < 0 && errno == EINTR);
  if (got != sizeof failure) return {};
  if (failure.step == ChildFailure::chdir_step) {
    return fail(errno_error(failure.errno_value,
                            fmt::format("entering '{}', where the VM's QEMU was started (name "
                                        "another folder with --cwd)",
                                        command.cwd)));
  }
  return fail(errno_error(failure.errno_value, fmt::format("starting {}", command.argv.front())));
}

std::string describe_end(int status) {
  if (WIFEXITED(status)) return fmt::format("exited with status {}", WEXITSTATUS(status));
  return fmt::format("was killed by signal {} ({})", WTERMSIG(status),
                     ::strsignal(WTERMSIG(status)));
}

}  // namespace

Result<QemuProcess> QemuProcess::start(const QemuCommand& command, const std::string& log_path) {
  VMSHADOW_ASSIGN(const std::string executable, find_executable(command.argv.front()));
  VMSHADOW_TRY(check_kvm(command));
  const UniqueFd null_fd(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  if (!null_fd) return fail_errno(errno, "opening /dev/null");
  const UniqueFd log_fd(::open(log_path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
  if (!log_fd) return fail_errno(errno, fmt::format("opening the log file {}", log_path));
  std::array<int, 2> pipe_fds{};
  if (::pipe2(pipe_fds.data(), O_CLOEXEC) != 0) return fail_errno(errno, "making a pipe");
  const UniqueFd read_end(pipe_fds[0]);
  UniqueFd write_end(pipe_fds[1]);

  const std::vector<char*> argv = pointers_to(command.argv);
  const std::vector<std::string> environment = environment_with(command.environment);
  const std::vector<char*> environment_pointers = pointers_to(environment);
  const pid_t pid = ::fork();
  if (pid < 0) return fail_errno(errno, "starting a process for QEMU");
  if (pid == 0) {
    become_qemu(executable.c_str(), argv.data(), environment_pointers.data(), command.cwd.c_str(),
                null_fd.get(), log_fd.get(), write_end.get());
  }
  write_end.reset();
  QemuProcess process(pid, log_path);
  VMSHADOW_TRY(check_started(read_end.get(), command));
  return process;
}

QemuProcess::QemuProcess(QemuProcess&& other) noexcept
    : pid_(std::exchange(other.pid_, -1)),
      log_path_(std::move(other.log_path_)),
      ended_(std::move(other.ended_)),
      released_(other.released_) {}

QemuProcess::~QemuProcess() {
  if (pid_ < 0 || released_ || ended()) return;
  ::kill(pid_, SIGKILL);
  while (::waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
  }
}

std::optional<std::string> QemuProcess::ended() {
  int status = 0;
  if (!ended_ && ::waitpid(pid_, &status, WNOHANG) == pid_) ended_ = describe_end(status);
  return ended_;
}

std::string QemuProcess::log_tail() const {
  std::ifstream log(log_path_, std::ios::binary | std::ios::ate);
  if (!log) return {};
  const auto bytes = static_cast<std::size_t>(std::max<std::streamoff>(log.tellg(), 0));
  const std::size_t wanted = std::min(bytes, kLogTailBytes);
  std::string tail(wanted, '\0');
  log.seekg(static_cast<std::streamoff>(bytes - wanted));
  log.read(tail.data(), static_cast<std::streamsize>(wanted));
  tail.resize(static_cast<std::size_t>(log.gcount()));
  while (!tail.empty() && tail.back() == '\n') tail.pop_back();
  for (std::size_t at = tail.find('\n'); at != std::string::npos; at = tail.find('\n', at)) {
    tail.replace(at, 1, "; ");
  }
  return tail;
}

void QemuProcess::release() { released_ = true; }

}  // namespace vmshadow::replay
