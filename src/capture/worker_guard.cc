#include "capture/worker_guard.h"

#include <fmt/format.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <new>
#include <string>

#include <vmshadow/clock.h>

#include "base/assert.h"
#include "capture/release_vm.h"
#include "qmp/commands.h"

namespace vmshadow::capture {
namespace {

using std::chrono::milliseconds;

constexpr int kExitFailed = 1;
constexpr milliseconds kClockEvery{50};
constexpr milliseconds kRetryEvery{500};
constexpr std::chrono::seconds kSayAgainEvery{60};

void say(const std::string& sentence) { fmt::print(stderr, "vmshadow-sidecar: {}\n", sentence); }

Status release(const GuardFlags& flags, const std::string& monitor) {
  qmp::SessionOptions options;
  options.greeting_timeout = std::chrono::seconds(5);
  VMSHADOW_ASSIGN(const auto session, qmp::Session::connect(monitor, options));
  VMSHADOW_TRY(release_vm(*session));
  VMSHADOW_ASSIGN(const auto settings, MigrationSettings::parse(flags.settings.data()));
  return settings.restore(*session);
}

/// Nobody listens on the monitor's socket any more: QEMU has ended.
bool vm_is_gone(const Error& error) {
  return error.code == Errc::closed || error.code == Errc::not_found;
}

/// Waits for one of `signals`; 0 if none came in time.
int wait_for_signal(const sigset_t& signals, milliseconds limit) {
  const timespec time{limit.count() / 1000, (limit.count() % 1000) * 1'000'000};
  const int signal = ::sigtimedwait(&signals, nullptr, &time);
  return signal > 0 ? signal : 0;
}

// A VM left in mid-checkpoint stands still, so this goes on until it runs, is gone, or we are told
// to stop.
int release_after_death(const std::string& how, const GuardFlags& flags, const std::string& monitor,
                        const sigset_t& signals) {
  auto said = std::chrono::steady_clock::now() - kSayAgainEvery;
  for (;;) {
    const Status released = release(flags, monitor);
    if (released) {
      say(
          fmt::format("the worker {}; the VM was released, runs on and is no longer protected: "
                      "start the sidecar again",
                      how));
      return kExitFailed;
    }
    if (vm_is_gone(released.error())) {
      say(fmt::format("the worker {}, and the VM is gone: {}", how, released.error().message));
      return kExitFailed;
    }
    if (std::chrono::steady_clock::now() - said >= kSayAgainEvery) {
      said = std::chrono::steady_clock::now();
      say(
          fmt::format("the worker {} and the VM may stand still: it could not be released yet: {}; "
                      "trying on",
                      how, released.error().message));
    }
    const int signal = wait_for_signal(signals, kRetryEvery);
    if (signal != 0 && signal != SIGCHLD) {
      say("stopped before the VM was released: if it is paused, send x-colo-lost-heartbeat through "
          "its monitor");
      return kExitFailed;
    }
  }
}

int after_worker(int status, const GuardOptions& options, const GuardFlags& flags, bool overdue,
                 const sigset_t& signals) {
  if (WIFEXITED(status) && !flags.migrating) return WEXITSTATUS(status);
  std::string how = WIFSIGNALED(status) ? fmt::format("was killed by signal {}", WTERMSIG(status))
                                        : fmt::format("ended with code {}", WEXITSTATUS(status));
  if (overdue) {
    how = fmt::format("kept the VM stopped for over {} ms and was killed",
                      options.pause_deadline.count());
  }
  if (!flags.migrating) {
    say(fmt::format("the worker {}; the VM is not affected", how));
    return kExitFailed;
  }
  return release_after_death(how, flags, options.monitor, signals);
}

bool is_overdue(const GuardFlags& flags, milliseconds deadline) {
  const std::int64_t since = flags.stopped_since_ns;
  return since != 0 && system_clock().monotonic() - MonotonicTime{since} > deadline;
}

int guard_worker(pid_t worker, const GuardOptions& options, const GuardFlags& flags,
                 const sigset_t& signals) {
  bool overdue = false;
  for (;;) {
    const int signal = wait_for_signal(signals, kClockEvery);
    int status = 0;
    const pid_t ended = ::waitpid(worker, &status, WNOHANG);
    if (ended == worker) return after_worker(status, options, flags, overdue, signals);
    if (signal != 0 && signal != SIGCHLD) {
      ::kill(worker, signal == SIGHUP ? SIGTERM : signal);
    }
    if (!overdue && is_overdue(flags, options.pause_deadline)) {
      overdue = true;
      ::kill(worker, SIGKILL);
    }
  }
}

/// The signals the guard takes; not those that our caller has us ignore (nohup, a shell's "&").
sigset_t guard_signals() {
  sigset_t signals;
  ::sigemptyset(&signals);
  ::sigaddset(&signals, SIGCHLD);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGQUIT}) {
    struct sigaction before {};
    ::sigaction(signal, nullptr, &before);
    if (before.sa_handler != SIG_IGN) ::sigaddset(&signals, signal);
  }
  return signals;
}

[[noreturn]] void run_worker(pid_t guard, GuardFlags& flags,
                             const std::function<int(GuardFlags&)>& worker) {
  ::prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (::getppid() != guard) ::raise(SIGTERM);  // the guard died before we could ask
  const int code = worker(flags);
  if (::getppid() != guard && !flags.migrating) {
    say(fmt::format(
        "the guard process {} was killed; the VM was released, runs on and is no longer "
        "protected: start the sidecar again",
        guard));
  }
  std::fflush(nullptr);
  ::_exit(code);
}

}  // namespace

void GuardFlags::arm(const MigrationSettings& before) {
  const std::string text = before.text();
  VMSHADOW_ASSERT(text.size() < settings.size());
  std::memcpy(settings.data(), text.c_str(), text.size() + 1);
  migrating = true;
}

int run_guarded(const GuardOptions& options, const std::function<int(GuardFlags&)>& worker) {
  void* memory = ::mmap(nullptr, sizeof(GuardFlags), PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    std::perror("vmshadow-sidecar: mapping the guard's flags");
    return kExitFailed;
  }
  auto* flags = new (memory) GuardFlags;

  // An ignored SIGCHLD, inherited, would hide the worker's end; a terminal's stop signals would
  // stop guard and worker together, with the VM standing still.
  ::signal(SIGCHLD, SIG_DFL);
  for (const int signal : {SIGTSTP, SIGTTIN, SIGTTOU}) ::signal(signal, SIG_IGN);
  // Blocked before the fork, so that none is lost in between; the guard waits for them and the
  // worker decides for itself how to take them.
  const sigset_t signals = guard_signals();
  ::sigprocmask(SIG_BLOCK, &signals, nullptr);

  const pid_t guard = ::getpid();
  const pid_t pid = ::fork();
  if (pid < 0) {
    std::perror("vmshadow-sidecar: starting the worker");
    return kExitFailed;
  }
  if (pid == 0) run_worker(guard, *flags, worker);
  return guard_worker(pid, options, *flags, signals);
}

}  // namespace vmshadow::capture
