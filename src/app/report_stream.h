// Where a program's running report goes: a stream over stdout or stderr that never fails and never
// waits.
//
//   who reports ─ print, flush ─► queue (bounded) ─► thread of its own ─► stdout or stderr
//
// A terminal that is closed gives EIO, a reader that ends EPIPE, one that has stopped reading (or a
// terminal held with Ctrl-S) makes a write wait for ever: none of it may end or hold a program that
// has a VM in its care. What finds no room in the queue is dropped whole, and counted; once the
// reader reads on, it is told how much it has missed.
#pragma once

#include <stdio.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <vmshadow/result.h>

namespace vmshadow::app {

class ReportStream {
 public:
  /// A reader may fall behind so far and still miss nothing: some 2,000 epochs' lines.
  static constexpr std::size_t kQueuedBytesMax = std::size_t{1} << 20;
  /// What one flush may bring together.
  static constexpr std::size_t kPieceBytesMax = 16 << 10;

  /// Starts the thread: not before a fork. `missed` makes the text that tells of so many dropped
  /// pieces (flushes: lines, of who flushes after each); empty: nothing is told.
  [[nodiscard]] static Result<std::unique_ptr<ReportStream>> open(
      int fd, std::function<std::string(std::uint64_t)> missed = {});
  /// Gives a slow reader a moment to take what is queued.
  ~ReportStream();
  ReportStream(const ReportStream&) = delete;
  ReportStream& operator=(const ReportStream&) = delete;

  /// Fully buffered: flush it. Lives as long as this.
  [[nodiscard]] std::FILE* file() const { return file_; }

 private:
  struct Queue;
  ReportStream(std::shared_ptr<Queue> queue, std::FILE* file);

  const std::shared_ptr<Queue> queue_;  // with the thread, which a stalled reader may hold
  std::vector<char> buffer_;
  std::FILE* const file_;
  std::thread thread_;
};

}  // namespace vmshadow::app
