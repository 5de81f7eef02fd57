#include "app/metrics_thread.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "base/thread_priority.h"

namespace vmshadow::app {

Result<std::unique_ptr<MetricsThread>> MetricsThread::start(
    MetricsServer::Options options, std::function<std::string()> page,
    std::function<void(const std::string&)> say) {
  UniqueFd wake(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake) return fail_errno(errno, "making an event descriptor");
  std::unique_ptr<MetricsThread> thread(
      new MetricsThread(std::move(options), std::move(page), std::move(say), std::move(wake)));
  if (!thread->file_.empty()) VMSHADOW_TRY(thread->server_.write_file());
  thread->thread_ = std::thread([raw = thread.get()] {
    lower_thread_priority(ThreadPriority::low);
    raw->server_.serve(raw->wake_.get());
  });
  return thread;
}

MetricsThread::MetricsThread(MetricsServer::Options options, std::function<std::string()> page,
                             std::function<void(const std::string&)> say, UniqueFd wake)
    : file_(options.file),
      wake_(std::move(wake)),
      server_(std::move(options), std::move(page), std::move(say)) {}

MetricsThread::~MetricsThread() {
  ::eventfd_write(wake_.get(), 1);
  if (!thread_.joinable()) return;
  thread_.join();
  if (!file_.empty()) ::unlink(file_.c_str());
}

}  // namespace vmshadow::app
