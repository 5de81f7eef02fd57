#include "app/metrics_process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <utility>

#include "base/thread_priority.h"
#include "base/unique_fd.h"

namespace vmshadow::app {
namespace {

/// All but stderr, for what cannot be written, and `kept` (-1: none): an end of a pipe or a monitor
/// that were open here would outlive whom it belongs to.
void close_all_but(int kept) {
  const UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO}) ::dup2(null.get(), fd);
  constexpr unsigned kFirst = STDERR_FILENO + 1;
  if (kept < 0) {
    ::close_range(kFirst, UINT32_MAX, 0);
    return;
  }
  const auto listener = static_cast<unsigned>(kept);
  if (listener > kFirst) ::close_range(kFirst, listener - 1, 0);
  ::close_range(listener + 1, UINT32_MAX, 0);
}

}  // namespace

Result<MetricsProcess> MetricsProcess::start(MetricsServer::Options options,
                                             const std::function<std::string()>& page,
                                             const std::function<void(const std::string&)>& say) {
  const std::string file = options.file;
  const int listener = options.listener.get();
  MetricsServer server(std::move(options), page, say);
  if (!file.empty()) VMSHADOW_TRY(server.write_file());
  const pid_t parent = ::getpid();
  const pid_t pid = ::fork();
  if (pid < 0) return fail_errno(errno, "starting the metrics process");
  if (pid > 0) return MetricsProcess(pid, file);

  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) ::_exit(0);
  ::prctl(PR_SET_NAME, kName);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGTSTP, SIGTTOU, SIGPIPE}) {
    ::signal(signal, SIG_IGN);
  }
  close_all_but(listener);
  lower_thread_priority(ThreadPriority::low);
  server.serve(-1);
  ::_exit(0);
}

MetricsProcess::MetricsProcess(MetricsProcess&& other) noexcept
    : pid_(std::exchange(other.pid_, -1)), file_(std::move(other.file_)) {}

MetricsProcess::~MetricsProcess() {
  if (pid_ < 0) return;
  ::kill(pid_, SIGKILL);
  ::waitpid(pid_, nullptr, 0);
  if (!file_.empty()) ::unlink(file_.c_str());
}

}  // namespace vmshadow::app
