// The guard over workers that are made up: what ends with it, what begins again, what is killed.
// Each guard runs in a process of its own, as it does in life.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <fstream>
#include <functional>
#include <iterator>
#include <string>

#include "base/shared_memory.h"
#include "capture/worker_guard.h"
#include "io/socket.h"
#include "support/scripted_monitor.h"
#include "support/temp_dir.h"

namespace vmshadow::capture {
namespace {

using std::chrono::milliseconds;
using testing::HasSubstr;

class WorkerGuardTest : public testing::Test {
 protected:
  WorkerGuardTest() {
    options_.monitor = folder_.file("no-monitor");
    options_.pause_deadline = milliseconds(100);
    options_.silence = milliseconds(300);
  }

  /// The exit code of a guard over `worker`; what they said is in words().
  int run(const std::function<int(GuardFlags&)>& worker) {
    const pid_t guard = start(worker);
    return wait_for(guard);
  }
  pid_t start(const std::function<int(GuardFlags&)>& worker) {
    std::fflush(nullptr);
    const pid_t guard = ::fork();
    if (guard == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);  // a guard that never ends must not outlive the test
      // A guard leaves alone what its caller ignores, as a shell does for what it runs with "&".
      for (const int signal : {SIGHUP, SIGINT, SIGQUIT, SIGTERM}) ::signal(signal, SIG_DFL);
      if (std::freopen(folder_.file("words").c_str(), "a", stderr) == nullptr) ::_exit(99);
      ::_exit(run_guarded(options_, worker));
    }
    return guard;
  }
  static int wait_for(pid_t guard) {
    int status = 0;
    EXPECT_EQ(::waitpid(guard, &status, 0), guard);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }
  [[nodiscard]] std::string words() const {
    std::ifstream file(folder_.file("words"));
    return {std::istreambuf_iterator<char>(file), {}};
  }
  /// Each worker leaves a mark; how many have.
  [[nodiscard]] std::size_t marks() const {
    std::ifstream file(folder_.file("marks"));
    return std::string(std::istreambuf_iterator<char>(file), {}).size();
  }
  void mark() const { std::ofstream(folder_.file("marks"), std::ios::app) << 'x'; }

  test::TempDir folder_;
  GuardOptions options_;
};

[[noreturn]] void hang() {
  for (;;) ::pause();
}

TEST_F(WorkerGuardTest, EndsWithAWorkerThatEndsForGood) {
  for (const int code : {kWorkerDone, kWorkerFailed, kWorkerVmGone}) {
    EXPECT_EQ(run([code](GuardFlags&) { return code; }), code);
  }
  EXPECT_EQ(words(), "");
}

TEST_F(WorkerGuardTest, StartsAnotherWorkerAfterWhatMayPass) {
  const int code = run([this](GuardFlags& flags) -> int {
    mark();
    if (flags.restarts == 0) return kWorkerTryAgain;
    if (flags.restarts == 1) ::abort();
    return kWorkerDone;
  });
  EXPECT_EQ(code, kWorkerDone);
  EXPECT_EQ(marks(), 3U);
  EXPECT_THAT(words(), HasSubstr("vmshadow-sidecar: protecting the VM again in 1 s\n"));
  EXPECT_THAT(words(), HasSubstr("the worker was killed by signal 6; the VM is not affected\n"));
  EXPECT_THAT(words(), HasSubstr("protecting the VM again in 2 s\n"));
}

TEST_F(WorkerGuardTest, WaitsNoLongerThanItMay) {
  options_.retry_most = milliseconds(1000);
  EXPECT_EQ(run([](GuardFlags& flags) -> int {
              return flags.restarts < 2 ? kWorkerTryAgain : kWorkerDone;
            }),
            kWorkerDone);
  EXPECT_EQ(words(),
            "vmshadow-sidecar: protecting the VM again in 1 s\n"
            "vmshadow-sidecar: protecting the VM again in 1 s\n");
}

TEST_F(WorkerGuardTest, OnceMeansOnce) {
  options_.once = true;
  EXPECT_EQ(run([](GuardFlags&) -> int { return kWorkerTryAgain; }), kWorkerFailed);
  EXPECT_EQ(words(), "");
}

TEST_F(WorkerGuardTest, KillsAWorkerThatShowsNoSignOfLife) {
  options_.once = true;
  EXPECT_EQ(run([](GuardFlags&) -> int { hang(); }), kWorkerFailed);
  EXPECT_THAT(words(), HasSubstr("the worker hung for over 0 s and was killed"));
}

TEST_F(WorkerGuardTest, CountsWhatItDoesWhereOthersSeeIt) {
  GuardCounts& counts = **make_shared_with_children<GuardCounts>();
  options_.counts = &counts;
  EXPECT_EQ(run([&counts](GuardFlags& flags) -> int {
              // A moment may pass until the guard knows that its fork has worked.
              while (!counts.worker_lives) ::usleep(100);
              if (counts.workers_started != flags.restarts + 1) return kWorkerFailed;
              if (flags.worker != counts.workers_started) return kWorkerFailed;
              if (flags.restarts == 0) hang();
              return kWorkerDone;
            }),
            kWorkerDone);
  EXPECT_EQ(counts.workers_started, 2U);
  EXPECT_EQ(counts.killed[GuardCounts::kSilent], 1U);
  EXPECT_EQ(counts.killed[GuardCounts::kOverdue], 0U);
  EXPECT_EQ(counts.killed[GuardCounts::kStopped], 0U);
  EXPECT_EQ(counts.releases, 0U);
  EXPECT_FALSE(counts.worker_lives);
}

/// A QEMU whose migration is over, and whose VM runs. In a process of its own: the guard forks, and
/// must have one thread.
class QemuAtRest {
 public:
  explicit QemuAtRest(const std::string& path) : pid_(::fork()) {
    if (pid_ == 0) serve(path);
    while (!io::connect_unix(path, io::deadline_after({}))) ::usleep(1000);
  }
  ~QemuAtRest() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  QemuAtRest(const QemuAtRest&) = delete;
  QemuAtRest& operator=(const QemuAtRest&) = delete;

 private:
  using Json = nlohmann::json;
  [[noreturn]] static void serve(const std::string& path) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    const test::ScriptedMonitor monitor(path, "7.2.22", [](const Json& command) -> Json {
      const bool status = command.value("execute", "") == "query-status";
      return {{"return", status ? Json{{"status", "running"}, {"running", true}} : Json::object()}};
    });
    for (;;) ::pause();
  }
  const pid_t pid_;
};

TEST_F(WorkerGuardTest, CountsOnlyWhatItHasReleased) {
  GuardCounts& counts = **make_shared_with_children<GuardCounts>();
  options_.counts = &counts;
  options_.once = true;
  const QemuAtRest qemu(options_.monitor);
  EXPECT_EQ(run([](GuardFlags& flags) -> int {
              flags.arm(MigrationSettings::parse(R"({"capabilities":{},"parameters":{}})").value());
              ::abort();
            }),
            kWorkerFailed);
  EXPECT_THAT(words(), HasSubstr("the worker was killed by signal 6; the VM was released"));
  EXPECT_EQ(counts.releases, 0U);
}

TEST_F(WorkerGuardTest, LeavesAWorkerThatBeatsAlone) {
  EXPECT_EQ(run([](GuardFlags& flags) -> int {
              for (int i = 0; i < 40; ++i) {
                flags.beat();
                ::usleep(20'000);
              }
              return kWorkerDone;
            }),
            kWorkerDone);
  EXPECT_EQ(words(), "");
}

// The monitor is not there either: the VM is gone, and with it what there was to release.
TEST_F(WorkerGuardTest, KillsAWorkerThatKeepsTheVmStopped) {
  EXPECT_EQ(run([](GuardFlags& flags) -> int {
              flags.migrating = true;
              flags.stopped_since_ns = system_clock().monotonic().ns;
              for (;;) {
                flags.beat();
                ::usleep(1000);
              }
            }),
            kWorkerVmGone);
  EXPECT_THAT(words(), HasSubstr("the worker kept the VM stopped for over 100 ms and was killed, "
                                 "and the VM is gone: "));
}

TEST_F(WorkerGuardTest, KillsAWorkerThatWasStopped) {
  options_.once = true;
  EXPECT_EQ(run([](GuardFlags&) -> int {
              ::raise(SIGSTOP);
              hang();
            }),
            kWorkerFailed);
  EXPECT_THAT(words(), HasSubstr("the worker was stopped by a signal for over 100 ms"));
}

// Between two tries there is no worker to tell: the guard itself ends, in order.
TEST_F(WorkerGuardTest, EndsInOrderWhenToldToBetweenTwoTries) {
  const pid_t guard = start([](GuardFlags&) -> int { return kWorkerTryAgain; });
  while (words().find("again in 2 s") == std::string::npos) ::usleep(10'000);
  ::kill(guard, SIGTERM);
  EXPECT_EQ(wait_for(guard), kWorkerDone);
}

TEST_F(WorkerGuardTest, PassesTheOrderToEndOn) {
  options_.silence = std::chrono::hours(1);
  for (const int signal : {SIGTERM, SIGINT, SIGQUIT}) {
    SCOPED_TRACE(signal);
    const std::size_t before = marks();
    const pid_t guard = start([this](GuardFlags&) -> int {
      sigset_t term;
      ::sigemptyset(&term);
      ::sigaddset(&term, SIGTERM);
      mark();
      int got = 0;
      ::sigwait(&term, &got);
      return kWorkerTryAgain;
    });
    while (marks() == before) ::usleep(1000);
    ::kill(guard, signal);
    EXPECT_EQ(wait_for(guard), kWorkerFailed);
  }
}

}  // namespace
}  // namespace vmshadow::capture
