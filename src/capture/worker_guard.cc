#include "capture/worker_guard.h"

#include <fmt/format.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <new>

#include "capture/release_vm.h"
#include "qmp/commands.h"

namespace vmshadow::capture {
namespace {

constexpr int kExitFailed = 1;

// The worker's monitor connection closes with it; QEMU may need a moment to notice.
Result<std::unique_ptr<qmp::Session>> take_monitor(const std::string& path) {
  qmp::SessionOptions options;
  options.greeting_timeout = std::chrono::seconds(5);
  return qmp::Session::connect(path, options);
}

Status release(const std::string& monitor) {
  VMSHADOW_ASSIGN(const auto session, take_monitor(monitor));
  VMSHADOW_TRY(release_vm(*session));
  // Left on, the next ordinary migration of this VM would enter COLO.
  return qmp::migrate_set_capabilities(*session, {{"x-colo", false}});
}

int after_worker(int status, const std::string& monitor, const GuardFlags& flags) {
  if (WIFEXITED(status) && !flags.migrating) return WEXITSTATUS(status);
  const std::string how = WIFSIGNALED(status)
                              ? fmt::format("was killed by signal {}", WTERMSIG(status))
                              : fmt::format("ended with code {}", WEXITSTATUS(status));
  if (!flags.migrating) {
    fmt::print(stderr, "vmshadow-sidecar: the worker {}; the VM is not affected\n", how);
    return kExitFailed;
  }
  if (const auto released = release(monitor); !released) {
    fmt::print(
        stderr,
        "vmshadow-sidecar: the worker {} and the VM could not be released: {}; check that it "
        "runs\n",
        how, released.error().message);
  } else {
    fmt::print(stderr,
               "vmshadow-sidecar: the worker {}; the VM was released, runs on and is no longer "
               "protected: start the sidecar again\n",
               how);
  }
  return kExitFailed;
}

}  // namespace

int run_guarded(const std::string& monitor, const std::function<int(GuardFlags&)>& worker) {
  void* memory = ::mmap(nullptr, sizeof(GuardFlags), PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    std::perror("vmshadow-sidecar: mapping the guard's flags");
    return kExitFailed;
  }
  auto* flags = new (memory) GuardFlags;

  // Blocked before the fork, so that none is lost in between; the guard waits for them below and
  // the worker decides for itself how to take them.
  sigset_t signals;
  ::sigemptyset(&signals);
  for (const int signal : {SIGCHLD, SIGINT, SIGTERM, SIGHUP}) ::sigaddset(&signals, signal);
  ::sigprocmask(SIG_BLOCK, &signals, nullptr);

  const pid_t guard = ::getpid();
  const pid_t pid = ::fork();
  if (pid < 0) {
    std::perror("vmshadow-sidecar: starting the worker");
    return kExitFailed;
  }
  if (pid == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (::getppid() != guard) ::raise(SIGTERM);  // the guard died before we could ask
    const int code = worker(*flags);
    if (::getppid() != guard && !flags->migrating) {
      fmt::print(stderr,
                 "vmshadow-sidecar: the guard process {} was killed; the VM was released, runs on "
                 "and is no longer protected: start the sidecar again\n",
                 guard);
    }
    std::fflush(nullptr);
    ::_exit(code);
  }
  for (;;) {
    int signal = 0;
    ::sigwait(&signals, &signal);
    if (signal != SIGCHLD) {
      ::kill(pid, signal == SIGHUP ? SIGTERM : signal);
      continue;
    }
    int status = 0;
    if (::waitpid(pid, &status, WNOHANG) == pid) return after_worker(status, monitor, *flags);
  }
}

}  // namespace vmshadow::capture
