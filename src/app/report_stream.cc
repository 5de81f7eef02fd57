#include "app/report_stream.h"

#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <utility>

namespace vmshadow::app {
namespace {

/// For what is queued at the end. The VM runs on by itself by then, but what comes after the
/// program (another worker, a service manager) waits for us.
constexpr std::chrono::milliseconds kEndPatience{2000};

/// What fails is dropped: a terminal or a reader that is gone comes back no more.
void write_whole(int fd, const std::string& text) {
  for (std::size_t at = 0; at < text.size();) {
    const ssize_t written = ::write(fd, text.data() + at, text.size() - at);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return;
    at += static_cast<std::size_t>(written);
  }
}

}  // namespace

struct ReportStream::Queue {
  int fd{};
  std::function<std::string(std::uint64_t)> missed;
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<std::string> pieces;
  std::size_t bytes = 0;
  std::uint64_t dropped = 0;  // since the reader was told last
  bool ending = false;
  bool ended = false;

  void add(std::string piece) {
    {
      const std::lock_guard lock(mutex);
      // Behind what was dropped nothing goes before the reader knows.
      if (dropped > 0 || bytes + piece.size() > kQueuedBytesMax) {
        ++dropped;
      } else {
        bytes += piece.size();
        pieces.push_back(std::move(piece));
      }
    }
    changed.notify_all();
  }

  void write_all() {
    std::unique_lock lock(mutex);
    for (;;) {
      changed.wait(lock, [&] { return ending || !pieces.empty() || dropped > 0; });
      if (pieces.empty() && dropped == 0) break;
      std::string text;
      if (pieces.empty()) {
        const std::uint64_t count = std::exchange(dropped, 0);
        if (missed) text = missed(count);
      } else {
        text = std::move(pieces.front());
        pieces.pop_front();
        bytes -= text.size();
      }
      lock.unlock();
      write_whole(fd, text);
      lock.lock();
    }
    ended = true;
    changed.notify_all();
  }
};

Result<std::unique_ptr<ReportStream>> ReportStream::open(
    int fd, std::function<std::string(std::uint64_t)> missed) {
  auto queue = std::make_shared<Queue>();
  queue->fd = fd;
  queue->missed = std::move(missed);
  cookie_io_functions_t functions{};
  functions.write = [](void* cookie, const char* text, std::size_t bytes) -> ssize_t {
    static_cast<Queue*>(cookie)->add(std::string(text, bytes));
    return static_cast<ssize_t>(bytes);
  };
  std::FILE* const file = ::fopencookie(queue.get(), "w", functions);
  if (file == nullptr) return fail_errno(errno, "opening the report");
  return std::unique_ptr<ReportStream>(new ReportStream(std::move(queue), file));
}

ReportStream::ReportStream(std::shared_ptr<Queue> queue, std::FILE* file)
    : queue_(std::move(queue)),
      buffer_(kPieceBytesMax),
      file_(file),
      thread_([in_thread = queue_] { in_thread->write_all(); }) {
  // A piece is what one flush brings: never a part of it because the buffer was full.
  std::setvbuf(file_, buffer_.data(), _IOFBF, buffer_.size());
}

ReportStream::~ReportStream() {
  std::fclose(file_);
  std::unique_lock lock(queue_->mutex);
  queue_->ending = true;
  queue_->changed.notify_all();
  const bool ended = queue_->changed.wait_for(lock, kEndPatience, [this] { return queue_->ended; });
  lock.unlock();
  if (ended) {
    thread_.join();
  } else {
    thread_.detach();
  }
}

}  // namespace vmshadow::app
