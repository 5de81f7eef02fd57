#include "app/metrics_process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <utility>

#include "base/thread_priority.h"
#include "base/unique_fd.h"

namespace vmshadow::app {
namespace {

using std::chrono::milliseconds;

/// Tells the child to end: from us, or, where we die, from the kernel.
constexpr int kEndSignal = SIGUSR1;
constexpr milliseconds kEndsWithin{2000};
constexpr milliseconds kDiesWithin{100};

void point_at_null(int fd) {
  const UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
  if (null) ::dup2(null.get(), fd);
}

/// An end of a pipe or a monitor that were open here would outlive whom it belongs to.
void close_all_but_standard_streams() {
  ::close_range(STDERR_FILENO + 1, UINT32_MAX, 0);
  point_at_null(STDIN_FILENO);
}

[[noreturn]] void run_server(MetricsServer::Options options, MetricsServer::Calls calls,
                             pid_t parent) {
  sigset_t end;
  ::sigemptyset(&end);
  ::sigaddset(&end, kEndSignal);
  ::sigprocmask(SIG_BLOCK, &end, nullptr);
  ::prctl(PR_SET_PDEATHSIG, kEndSignal);
  if (::getppid() != parent) ::_exit(0);
  ::prctl(PR_SET_NAME, MetricsProcess::kName);
  // A service manager or a terminal that ends the program tells all its processes: the others end
  // in order, and are seen doing so.
  for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGTSTP, SIGTTOU, SIGPIPE}) {
    ::signal(signal, SIG_IGN);
  }
  close_all_but_standard_streams();
  lower_thread_priority(ThreadPriority::low);
  const UniqueFd wake(::signalfd(-1, &end, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!wake) ::_exit(1);
  // Stdout is for the announcement alone: whoever reads the program's report waits for its end.
  if (!options.listen) point_at_null(STDOUT_FILENO);
  const auto announce = std::move(calls.announce);
  calls.announce = [&announce](const std::string& url) {
    announce(url);
    point_at_null(STDOUT_FILENO);
  };
  MetricsServer(std::move(options), std::move(calls)).serve(wake.get());
  ::_exit(0);
}

}  // namespace

Result<MetricsProcess> MetricsProcess::start(MetricsServer::Options options,
                                             MetricsServer::Calls calls) {
  const pid_t parent = ::getpid();
  const pid_t pid = ::fork();
  if (pid < 0) return fail_errno(errno, "starting the metrics process");
  if (pid == 0) run_server(std::move(options), std::move(calls), parent);
  return MetricsProcess(pid);
}

MetricsProcess::MetricsProcess(MetricsProcess&& other) noexcept
    : pid_(std::exchange(other.pid_, -1)) {}

MetricsProcess::~MetricsProcess() {
  if (pid_ < 0) return;
  ::kill(pid_, kEndSignal);
  if (ends_within(kEndsWithin)) return;
  ::kill(pid_, SIGKILL);
  static_cast<void>(ends_within(kDiesWithin));  // else it is init's
}

bool MetricsProcess::ends_within(milliseconds patience) const {
  constexpr milliseconds kLookEvery{2};
  const auto deadline = io::deadline_after(patience);
  for (;;) {
    const pid_t ended = ::waitpid(pid_, nullptr, WNOHANG);
    if (ended == pid_ || (ended < 0 && errno != EINTR)) return true;
    if (io::Deadline::clock::now() >= deadline) return false;
    ::poll(nullptr, 0, static_cast<int>(kLookEvery.count()));
  }
}

}  // namespace vmshadow::app
