#include "capture/worker_guard.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include <vmshadow/clock.h>

#include "base/assert.h"
#include "base/say.h"
#include "base/shared_memory.h"
#include "base/unique_fd.h"
#include "capture/abandoned_capture.h"
#include "capture/back_off.h"
#include "capture/disk_mirror.h"
#include "capture/guard_priority.h"
#include "capture/release_vm.h"
#include "capture/vm_claim.h"
#include "io/socket.h"
#include "qmp/commands.h"
#include "qmp/standby_monitor.h"

namespace vmshadow::capture {
namespace {

using std::chrono::milliseconds;
using std::chrono::nanoseconds;

constexpr std::string_view kProgram = "vmshadow-sidecar";
constexpr milliseconds kLookEvery{50};
/// A look that comes later than this: it was the guard that could not run.
constexpr milliseconds kLookLate{500};
constexpr milliseconds kDiesWithin{100};
constexpr milliseconds kRetryEvery{200};
constexpr std::chrono::seconds kSayAgainEvery{60};
constexpr milliseconds kBackOffFirst{1000};
constexpr std::chrono::seconds kHealthyAfter{60};
constexpr milliseconds kMonitorPatience{3000};

void say(const std::string& sentence) { vmshadow::say(kProgram, sentence); }

MonotonicTime now() { return system_clock().monotonic(); }

std::string seconds_text(milliseconds wait) { return fmt::format("{} s", wait.count() / 1000); }

/// Nobody listens on the monitor's socket any more: QEMU has ended.
bool vm_is_gone(const Error& error) {
  return error.code == Errc::closed || error.code == Errc::not_found;
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

bool has_terminal() {
  return static_cast<bool>(UniqueFd(::open("/dev/tty", O_RDONLY | O_CLOEXEC | O_NOCTTY)));
}

class WorkerGuard {
 public:
  WorkerGuard(const GuardOptions& options, GuardFlags& flags,
              const std::function<int(GuardFlags&)>& worker)
      : options_(options),
        flags_(flags),
        counts_(options.counts != nullptr ? *options.counts : unseen_counts_),
        worker_(worker),
        signals_(guard_signals()),
        has_terminal_(has_terminal()),
        back_off_(std::min(kBackOffFirst, options.retry_most), options.retry_most) {}

  int run();

 private:
  enum class Death { none, by_itself, overdue, stopped, silent };
  enum class Release { done, vm_gone, told_to_stop };

  [[nodiscard]] bool open_own_monitor();
  void release_left_behind();
  [[nodiscard]] bool start_worker();
  [[noreturn]] void run_worker(pid_t guard);
  void watch();
  void reap();
  void look();
  void kill_worker(Death why, GuardCounts::Kill counted);
  bool cut_connections();
  [[nodiscard]] nanoseconds until_next_look() const;
  /// Takes a signal if one comes in time; true if it tells us to end.
  bool take_signal(nanoseconds limit);
  [[nodiscard]] std::optional<int> after_worker();
  [[nodiscard]] Release release_vm_at_last();
  [[nodiscard]] Status try_release();
  [[nodiscard]] Status try_to_end_capture(qmp::Session& session);
  [[nodiscard]] std::string death_text() const;
  [[nodiscard]] bool wait_out(milliseconds wait);

  const GuardOptions& options_;
  GuardFlags& flags_;
  GuardCounts unseen_counts_;
  GuardCounts& counts_;
  const std::function<int(GuardFlags&)>& worker_;
  const sigset_t signals_;
  const bool has_terminal_;
  const GuardPriority priority_;
  BackOff back_off_;
  std::optional<qmp::StandbyMonitor> own_monitor_;
  std::string not_released_;    // why not, of a VM that runs all the same
  bool ended_capture_ = false;  // a dead worker's, in place of it
  bool told_to_stop_ = false;

  // Of the worker that is watched.
  pid_t pid_ = -1;
  bool reaped_ = true;
  UniqueFd from_worker_;  // what it passes on: its monitor connection
  int status_ = 0;
  Death death_ = Death::none;
  MonotonicTime killed_at_{};
  std::optional<MonotonicTime> stopped_at_;  // the worker itself, by SIGSTOP
  std::uint32_t beats_seen_ = 0;
  nanoseconds silent_for_{};
  MonotonicTime looked_at_{};
};

int WorkerGuard::run() {
  // Blocked before the fork, so that none is lost in between; the guard waits for them and the
  // worker decides for itself how to take them.
  ::sigprocmask(SIG_BLOCK, &signals_, nullptr);
  const std::string got = priority_.raise();
  for (;;) {
    if (!open_own_monitor()) {
      release_left_behind();
      return kWorkerFailed;
    }
    if (start_worker()) {
      const bool locked = GuardPriority::lock_memory();
      if (options_.verbose && flags_.restarts == 0) {
        say(fmt::format("the guard (process {}) has {} and {}; it ends a pause after {} ms",
                        ::getpid(), got, locked ? "locked its memory" : "no locked memory",
                        options_.pause_deadline.count()));
      }
      watch();
      counts_.worker_lives = false;
      cut_connections();  // what is on its way to us keeps it open, though the worker is dead
      if (const auto code = after_worker()) return *code;
    } else if (flags_.restarts == 0) {
      return kWorkerFailed;
    }
    const milliseconds wait = back_off_.next();
    say(fmt::format("protecting the VM again in {}", seconds_text(wait)));
    if (!wait_out(wait)) return kWorkerDone;
    ++flags_.restarts;
  }
}

// A monitor that was said to be the guard's and is not must be known at the start; later on, what
// is left is the worker's, free once it is dead.
bool WorkerGuard::open_own_monitor() {
  if (options_.own_monitor.empty() || own_monitor_) return true;
  auto opened = qmp::StandbyMonitor::open(options_.own_monitor, kMonitorPatience);
  if (opened) {
    own_monitor_.emplace(*std::move(opened));
    return true;
  }
  say("the guard's own monitor: " + opened.error().message);
  return flags_.restarts > 0;
}

// A VM that a killed sidecar has left standing still does not wait until our options are right.
void WorkerGuard::release_left_behind() {
  const auto session = qmp::Session::connect(options_.monitor);
  if (!session) return;
  const auto claim = VmClaim::take(**session);
  if (!claim || !*claim) return;
  const auto released = release_abandoned(**session);
  if (!released) return say("the VM may stand still: " + released.error().message);
  if (*released) say(**released);
}

bool WorkerGuard::start_worker() {
  flags_.clear();
  death_ = Death::none;
  stopped_at_.reset();
  beats_seen_ = 0;
  silent_for_ = {};
  looked_at_ = now();
  auto channel = io::socket_pair();
  if (!channel) {
    say(std::move(channel).error().with_context("starting the worker").message);
    return false;
  }
  flags_.to_guard = channel->second.get();
  flags_.worker = counts_.workers_started + 1;
  const pid_t guard = ::getpid();
  const pid_t pid = ::fork();
  if (pid < 0) {
    say(errno_error(errno, "starting the worker").message);
    return false;
  }
  if (pid == 0) {
    channel->first.reset();
    run_worker(guard);
  }
  from_worker_ = std::move(channel->first);
  pid_ = pid;
  reaped_ = false;
  counts_.workers_started = flags_.worker;
  counts_.worker_lives = true;
  return true;
}

void WorkerGuard::run_worker(pid_t guard) {
  priority_.lower();
  own_monitor_.reset();
  ::prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (::getppid() != guard) ::raise(SIGTERM);  // the guard died before we could ask
  const int code = worker_(flags_);
  if (::getppid() != guard && !flags_.migrating) {
    say(fmt::format(
        "the guard process {} was killed; the VM was released, runs on and is no longer "
        "protected: start the sidecar again",
        guard));
  }
  std::fflush(nullptr);
  ::_exit(code);
}

/// Until the worker is dead: no allocation here.
void WorkerGuard::watch() {
  while (!reaped_) {
    take_signal(until_next_look());
    reap();
    if (reaped_) return;
    look();
    if (death_ == Death::none) continue;
    // A dying process keeps its sockets until its last thread has run once more. On a host whose
    // processors are all busy that may take seconds (the encoder has SCHED_IDLE), and one whose
    // disk does not answer never does: it must not keep the VM.
    if (cut_connections() || now() - killed_at_ > kDiesWithin) return;
  }
}

/// Frees the worker's monitor for us, and QEMU from its mirrors, as its death would. False if we
/// have none of them.
bool WorkerGuard::cut_connections() {
  bool cut = false;
  while (const UniqueFd passed = io::take_passed_fd(from_worker_.get())) {
    cut = ::shutdown(passed.get(), SHUT_RDWR) == 0 || cut;
  }
  return cut;
}

bool WorkerGuard::take_signal(nanoseconds limit) {
  const auto ns = std::max<std::int64_t>(limit.count(), 0);
  const timespec time{ns / 1'000'000'000, ns % 1'000'000'000};
  const int signal = ::sigtimedwait(&signals_, nullptr, &time);
  if (signal <= 0 || signal == SIGCHLD) return false;
  // Not from a terminal, for there is none: nothing to reload, nothing to end.
  if (signal == SIGHUP && !has_terminal_) return false;
  told_to_stop_ = true;
  if (!reaped_) ::kill(pid_, SIGTERM);
  return true;
}

void WorkerGuard::reap() {
  int status = 0;
  while (!reaped_ && ::waitpid(pid_, &status, WNOHANG | WUNTRACED | WCONTINUED) == pid_) {
    if (WIFSTOPPED(status)) {
      stopped_at_ = now();
    } else if (WIFCONTINUED(status)) {
      stopped_at_.reset();
    } else {
      reaped_ = true;
      status_ = status;
      if (death_ == Death::none) death_ = Death::by_itself;
    }
  }
}

void WorkerGuard::look() {
  if (own_monitor_ && !own_monitor_->drain()) own_monitor_.reset();
  if (death_ != Death::none) return;
  const MonotonicTime time = now();
  // By the guard's own looks, not by the clock: a host that froze both must not cost the worker its
  // life.
  const nanoseconds since = time - looked_at_;
  looked_at_ = time;
  const std::uint32_t beats = flags_.beats.load(std::memory_order_relaxed);
  silent_for_ = beats == beats_seen_ && since < kLookLate ? silent_for_ + since : nanoseconds{};
  beats_seen_ = beats;

  const std::int64_t vm_stopped = flags_.stopped_since_ns;
  if (vm_stopped != 0 && time - MonotonicTime{vm_stopped} > options_.pause_deadline) {
    kill_worker(Death::overdue, GuardCounts::kOverdue);
  } else if (stopped_at_ && time - *stopped_at_ > options_.pause_deadline) {
    kill_worker(Death::stopped, GuardCounts::kStopped);
  } else if (silent_for_ > options_.silence) {
    kill_worker(Death::silent, GuardCounts::kSilent);
  }
}

void WorkerGuard::kill_worker(Death why, GuardCounts::Kill counted) {
  death_ = why;
  ++counts_.killed[counted];
  killed_at_ = now();
  ::kill(pid_, SIGKILL);
}

nanoseconds WorkerGuard::until_next_look() const {
  nanoseconds wait = kLookEvery;
  const auto not_after = [&](MonotonicTime since) {
    // A bit behind the deadline, for it must have passed.
    wait = std::min(wait, since - now() + options_.pause_deadline + std::chrono::microseconds{100});
  };
  if (death_ != Death::none) return std::min<nanoseconds>(wait, kDiesWithin / 10);
  if (const std::int64_t since = flags_.stopped_since_ns; since != 0) not_after({since});
  if (stopped_at_) not_after(*stopped_at_);
  return wait;
}

std::string WorkerGuard::death_text() const {
  const auto limit = options_.pause_deadline.count();
  switch (death_) {
    case Death::overdue:
      return fmt::format("kept the VM stopped for over {} ms and was killed", limit);
    case Death::stopped:
      return fmt::format("was stopped by a signal for over {} ms and was killed", limit);
    case Death::silent:
      return fmt::format("hung for over {} and was killed", seconds_text(options_.silence));
    case Death::none:
    case Death::by_itself:
      break;
  }
  return WIFSIGNALED(status_) ? fmt::format("was killed by signal {}", WTERMSIG(status_))
                              : fmt::format("ended with code {}", WEXITSTATUS(status_));
}

/// Sees to the VM; the program's exit code, or nullopt if another worker shall be started.
std::optional<int> WorkerGuard::after_worker() {
  const bool exited = reaped_ && WIFEXITED(status_);
  const int code = exited ? WEXITSTATUS(status_) : kWorkerTryAgain;
  const std::int64_t since = flags_.protected_since_ns;
  if (since != 0 && now() - MonotonicTime{since} > kHealthyAfter) back_off_.reset();
  const bool ends = options_.once || told_to_stop_ || (exited && code != kWorkerTryAgain);

  if (flags_.migrating || flags_.mirroring) {
    switch (release_vm_at_last()) {
      case Release::vm_gone:
        return kWorkerVmGone;
      case Release::told_to_stop:
        return kWorkerFailed;
      case Release::done:
        break;
    }
    if (ended_capture_) ++counts_.releases;
    say(fmt::format("the worker {}; the VM {} and is no longer protected{}", death_text(),
                    not_released_.empty() ? "was released, runs on"
                                          : "runs on, but it was not released: " + not_released_,
                    ends ? ": start the sidecar again" : ""));
    if (ends) return kWorkerFailed;
  } else if (!exited) {
    say(fmt::format("the worker {}; the VM is not affected", death_text()));
  }
  if (ends) return exited && code != kWorkerTryAgain ? code : kWorkerFailed;
  // Only what is dead may be followed.
  while (!reaped_) {
    if (take_signal(kRetryEvery)) return kWorkerFailed;
    reap();
  }
  return std::nullopt;
}

// A VM left in mid-checkpoint stands still, so this goes on until it runs, is gone, or we are told
// to stop.
WorkerGuard::Release WorkerGuard::release_vm_at_last() {
  std::optional<MonotonicTime> said;
  ended_capture_ = false;
  for (;;) {
    const Status released = try_release();
    if (released) return Release::done;
    if (vm_is_gone(released.error())) {
      say(fmt::format("the worker {}, and the VM is gone: {}", death_text(),
                      released.error().message));
      return Release::vm_gone;
    }
    if (!said || now() - *said > kSayAgainEvery) {
      said = now();
      say(
          fmt::format("the worker {} and the VM may stand still: it could not be released yet: {}; "
                      "trying on",
                      death_text(), released.error().message));
    }
    if (take_signal(kRetryEvery)) {
      say("stopped before the VM was released: if it is paused, run vmshadow-sidecar --release "
          "with its --qmp");
      return Release::told_to_stop;
    }
    reap();
  }
}

Status WorkerGuard::try_release() {
  qmp::SessionOptions session_options;
  session_options.greeting_timeout = kMonitorPatience;
  const auto open = [&]() -> Result<std::unique_ptr<qmp::Session>> {
    if (own_monitor_) {
      auto ready = std::move(*own_monitor_).wake(session_options);
      own_monitor_.reset();
      if (ready) return ready;
    }
    return qmp::Session::connect(options_.monitor, session_options);
  };
  VMSHADOW_ASSIGN(const auto session, open());
  free_stuck_monitor(*session);
  not_released_.clear();
  if (flags_.migrating) VMSHADOW_TRY(try_to_end_capture(*session));
  if (flags_.mirroring) VMSHADOW_TRY(end_mirrors(*session));
  return {};
}

Status WorkerGuard::try_to_end_capture(qmp::Session& session) {
  auto released = release_vm(session, flags_.resume_owed);
  if (released && *released) ended_capture_ = true;
  if (!released) {
    // A QEMU that has lost track of its migration never ends it; what counts is the guest.
    const auto run_state = qmp::query_status(session);
    if (!run_state || !run_state->running) return fail(std::move(released).error());
    not_released_ = std::move(released).error().message;
    return {};
  }
  VMSHADOW_ASSIGN(const auto settings, MigrationSettings::parse(flags_.settings.data()));
  return settings.restore(session);
}

/// False if told to stop meanwhile.
bool WorkerGuard::wait_out(milliseconds wait) {
  const MonotonicTime until = now() + wait;
  for (MonotonicTime time = now(); time < until; time = now()) {
    if (take_signal(until - time)) return false;
  }
  return true;
}

}  // namespace

int run_guarded(const GuardOptions& options, const std::function<int(GuardFlags&)>& worker) {
  const auto flags = make_shared_with_children<GuardFlags>();
  if (!flags) {
    say(flags.error().message);
    return kWorkerFailed;
  }

  // An ignored SIGCHLD, inherited, would hide the worker's end; a terminal's stop signals would
  // stop guard and worker together, with the VM standing still; a closed pipe must end nobody.
  ::signal(SIGCHLD, SIG_DFL);
  for (const int signal : {SIGTSTP, SIGTTIN, SIGTTOU, SIGPIPE}) ::signal(signal, SIG_IGN);
  return WorkerGuard(options, **flags, worker).run();
}

}  // namespace vmshadow::capture
