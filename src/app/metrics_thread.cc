#include "app/metrics_thread.h"

#include <sys/eventfd.h>

#include <cerrno>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "base/unique_fd.h"

namespace vmshadow::app {
namespace {

constexpr std::chrono::milliseconds kThreadEndsWithin{2000};

}  // namespace

struct MetricsThread::Shared {
  UniqueFd wake{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
  std::optional<MetricsServer> server;  // of the thread

  std::mutex page_mutex;  // held while a page is made
  bool left_behind = false;

  std::mutex ended_mutex;
  std::condition_variable ended_changed;
  bool ended = false;

  void run() {
    server->serve(wake.get());
    const std::lock_guard lock(ended_mutex);
    ended = true;
    ended_changed.notify_all();
  }
};

Result<std::unique_ptr<MetricsThread>> MetricsThread::start(MetricsServer::Options options,
                                                            MetricsServer::Calls calls) {
  auto shared = std::make_shared<Shared>();
  if (!shared->wake) return fail_errno(errno, "making an event descriptor");
  calls.page = [raw = shared.get(), page = std::move(calls.page)] {
    const std::lock_guard lock(raw->page_mutex);
    return raw->left_behind ? std::string() : page();
  };
  shared->server.emplace(std::move(options), std::move(calls));
  return std::unique_ptr<MetricsThread>(new MetricsThread(std::move(shared)));
}

MetricsThread::MetricsThread(std::shared_ptr<Shared> shared)
    : shared_(std::move(shared)), thread_([in_thread = shared_] { in_thread->run(); }) {}

MetricsThread::~MetricsThread() {
  ::eventfd_write(shared_->wake.get(), 1);
  {
    std::unique_lock lock(shared_->ended_mutex);
    shared_->ended_changed.wait_for(lock, kThreadEndsWithin, [&] { return shared_->ended; });
    if (shared_->ended) {
      thread_.join();
      return;
    }
  }
  const std::lock_guard lock(shared_->page_mutex);
  shared_->left_behind = true;
  thread_.detach();
}

}  // namespace vmshadow::app
