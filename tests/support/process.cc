#include "support/process.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <sstream>
#include <utility>

namespace vmshadow::test {
namespace {

// Everything the child needs between fork and exec, prepared before: it may not allocate there.
struct Launch {
  std::vector<char*> argv;
  std::vector<std::string> env_text;
  std::vector<char*> env;
  UniqueFd in, out, err;
  pid_t parent{};
};

bool overrides(const std::vector<std::string>& additions, std::string_view variable) {
  const std::string_view name = variable.substr(0, variable.find('=') + 1);
  for (const auto& addition : additions) {
    if (std::string_view(addition).substr(0, name.size()) == name) return true;
  }
  return false;
}

Result<UniqueFd> open_output(const std::string& path) {
  UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644));
  if (!fd) return fail_errno(errno, fmt::format("opening {}", path));
  return fd;
}

[[noreturn]] void run_child(const Launch& launch, int report_fd) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != launch.parent) ::_exit(127);
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  if (launch.in) ::dup2(launch.in.get(), 0);
  if (launch.out) ::dup2(launch.out.get(), 1);
  if (launch.err) ::dup2(launch.err.get(), 2);
  ::execvpe(launch.argv[0], launch.argv.data(), launch.env.data());
  const int error = errno;
  [[maybe_unused]] const ssize_t ignored = ::write(report_fd, &error, sizeof error);
  ::_exit(127);
}

Result<Launch> prepare(const ProcessOptions& options) {
  Launch launch;
  for (const auto& word : options.argv) launch.argv.push_back(const_cast<char*>(word.c_str()));
  launch.argv.push_back(nullptr);
  for (char** variable = environ; *variable != nullptr; ++variable) {
    if (!overrides(options.env, *variable)) launch.env_text.emplace_back(*variable);
  }
  launch.env_text.insert(launch.env_text.end(), options.env.begin(), options.env.end());
  for (auto& variable : launch.env_text) launch.env.push_back(variable.data());
  launch.env.push_back(nullptr);
  if (options.stdin_null) launch.in.reset(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  if (!options.stdout_file.empty()) {
    VMSHADOW_ASSIGN(launch.out, open_output(options.stdout_file));
  }
  if (!options.stderr_file.empty()) {
    VMSHADOW_ASSIGN(launch.err, open_output(options.stderr_file));
  }
  launch.parent = ::getpid();
  return launch;
}

Result<std::pair<UniqueFd, UniqueFd>> make_pipe() {
  int fds[2];
  if (::pipe2(fds, O_CLOEXEC) != 0) return fail_errno(errno, "making a pipe");
  return std::pair{UniqueFd(fds[0]), UniqueFd(fds[1])};
}

}  // namespace

bool in_path(const std::string& program) {
  if (program.find('/') != std::string::npos) return ::access(program.c_str(), X_OK) == 0;
  const char* path = std::getenv("PATH");
  std::string rest = path != nullptr ? path : "";
  while (!rest.empty()) {
    const std::size_t colon = rest.find(':');
    if (::access((rest.substr(0, colon) + "/" + program).c_str(), X_OK) == 0) return true;
    rest = colon == std::string::npos ? "" : rest.substr(colon + 1);
  }
  return false;
}

std::string ExitStatus::text() const {
  return signal != 0 ? fmt::format("signal {}", signal) : fmt::format("exit code {}", code);
}

Result<Process> Process::spawn(const ProcessOptions& options) {
  if (options.argv.empty()) return fail(Errc::invalid_argument, "a process needs a program");
  VMSHADOW_ASSIGN(Launch launch, prepare(options));
  Process process;
  if (options.stdout_pipe) {
    VMSHADOW_ASSIGN(auto out, make_pipe());
    process.stdout_ = std::move(out.first);
    launch.out = std::move(out.second);
  }
  // Closed by a successful exec; carries errno after a failed one.
  VMSHADOW_ASSIGN(auto report, make_pipe());
  process.pid_ = ::fork();
  if (process.pid_ < 0) return fail_errno(errno, "fork");
  if (process.pid_ == 0) run_child(launch, report.second.get());
  process.pidfd_.reset(static_cast<int>(::syscall(SYS_pidfd_open, process.pid_, 0)));
  report.second.reset();
  int error = 0;
  ssize_t got = 0;
  while ((got = ::read(report.first.get(), &error, sizeof error)) < 0 && errno == EINTR) {
  }
  if (got == sizeof error) {
    process.kill();
    return fail_errno(error, fmt::format("starting {}", options.argv[0]));
  }
  if (!process.pidfd_) return fail(Errc::unsupported, "this kernel has no pidfd_open");
  return process;
}

Process::Process(Process&& other) noexcept
    : pid_(std::exchange(other.pid_, -1)),
      pidfd_(std::move(other.pidfd_)),
      stdout_(std::move(other.stdout_)),
      ended_(other.ended_),
      status_(other.status_) {}

Process& Process::operator=(Process&& other) noexcept {
  if (this != &other) {
    kill();
    pid_ = std::exchange(other.pid_, -1);
    pidfd_ = std::move(other.pidfd_);
    stdout_ = std::move(other.stdout_);
    ended_ = other.ended_;
    status_ = other.status_;
  }
  return *this;
}

Process::~Process() { kill(); }

bool Process::running() const {
  if (pid_ < 0 || ended_) return false;
  pollfd p{pidfd_.get(), POLLIN, 0};
  return ::poll(&p, 1, 0) == 0;
}

Status Process::signal(int number) const {
  if (pid_ < 0 || ended_) return fail(Errc::not_found, "the process has ended");
  if (::kill(pid_, number) != 0) return fail_errno(errno, fmt::format("signalling {}", pid_));
  return {};
}

Result<ExitStatus> Process::wait(io::Deadline deadline) {
  if (ended_) return status_;
  if (auto end = io::wait_for(pidfd_.get(), POLLIN, deadline); !end) {
    return fail(end.error().code, fmt::format("process {} still runs", pid_));
  }
  int status = 0;
  while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
  }
  ended_ = true;
  status_ =
      WIFSIGNALED(status) ? ExitStatus{-1, WTERMSIG(status)} : ExitStatus{WEXITSTATUS(status), 0};
  return status_;
}

void Process::kill() {
  if (pid_ < 0 || ended_) return;
  ::kill(pid_, SIGKILL);
  while (::waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
  }
  ended_ = true;
  status_ = ExitStatus{-1, SIGKILL};
}

Result<std::chrono::milliseconds> Process::cpu_time() const {
  std::ifstream file(fmt::format("/proc/{}/stat", pid_));
  std::string text;
  std::getline(file, text);
  const std::size_t name_end = text.rfind(')');
  if (!file || name_end == std::string::npos) {
    return fail(Errc::not_found, fmt::format("process {} has ended", pid_));
  }
  // After the name come state and ten numbers, then utime and stime (proc(5), fields 14 and 15).
  std::istringstream fields(text.substr(name_end + 1));
  std::string skipped;
  for (int i = 0; i < 11; ++i) fields >> skipped;
  long long user = 0;
  long long system = 0;
  fields >> user >> system;
  return std::chrono::milliseconds((user + system) * 1000 / ::sysconf(_SC_CLK_TCK));
}

}  // namespace vmshadow::test
