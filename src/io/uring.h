// A small io_uring loop for files: a batch of writes and the fdatasync behind them in as few system
// calls as they need (one, for a commit that fits one write). The only user of liburing.
//
// Every call submits, waits for all its completions and returns: no buffer is in flight between
// calls. At most kUringWritesInFlight writes are under way at once. One thread at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include <vmshadow/result.h>
#include <vmshadow/types.h>

namespace vmshadow::io {

inline constexpr unsigned kUringWritesInFlight = 16;

class Uring {
 public:
  /// Errc::unsupported if the kernel lacks io_uring or a sandbox refuses it.
  [[nodiscard]] static Result<std::unique_ptr<Uring>> create();
  ~Uring();
  Uring(const Uring&) = delete;
  Uring& operator=(const Uring&) = delete;

  /// Writes all of `pieces`, one after the other, from `offset`, then fdatasyncs if `sync`. Errors
  /// as errno_error() makes them.
  [[nodiscard]] Status write(int fd, std::span<const ByteSpan> pieces, std::uint64_t offset,
                             bool sync);

 private:
  struct Ring;
  explicit Uring(std::unique_ptr<Ring> ring);
  std::unique_ptr<Ring> ring_;
};

}  // namespace vmshadow::io
