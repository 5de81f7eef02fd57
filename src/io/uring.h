// A small io_uring loop for files: a batch of writes and the fdatasync behind them in as few system
// calls as they need. The only user of liburing.
//
// Every call submits, waits for all its completions and returns, but for begin_direct(). At most
// kUringWritesInFlight writes are under way at once. One thread at a time.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>

#include <vmshadow/result.h>
#include <vmshadow/types.h>

namespace vmshadow::io {

inline constexpr unsigned kUringWritesInFlight = 16;
/// A direct write is cut at this size: larger than most commits, for two halves come later than one
/// whole; several at once are as fast as smaller ones.
inline constexpr std::size_t kDirectChunkBytes = std::size_t{1} << 20;

class Uring {
 public:
  /// Errc::unsupported if the kernel lacks io_uring or a sandbox refuses it.
  [[nodiscard]] static Result<std::unique_ptr<Uring>> create();
  ~Uring();
  Uring(const Uring&) = delete;
  Uring& operator=(const Uring&) = delete;

  /// Makes the buffers that write_direct() copies through, registered with the kernel if it lets
  /// us (16 MiB count towards RLIMIT_MEMLOCK). True if they are registered.
  bool prepare_direct_writes();
  [[nodiscard]] bool has_fixed_buffers() const;

  /// Writes all of `pieces`, one after the other, from `offset`, then fdatasyncs if `sync`. Errors
  /// as errno_error() makes them.
  [[nodiscard]] Status write(int fd, std::span<const ByteSpan> pieces, std::uint64_t offset,
                             bool sync);
  /// The same for a file opened with O_DIRECT: `offset` and the sum of the pieces are whole blocks,
  /// the pieces need not be. Copies run while earlier chunks are on their way to the disk. What the
  /// file refuses to take directly (EINVAL) goes through `buffered_fd`, the same file without
  /// O_DIRECT.
  [[nodiscard]] Status write_direct(int fd, int buffered_fd, std::span<const ByteSpan> pieces,
                                    std::uint64_t offset, bool sync);

  enum class Begun : std::uint64_t {};
  /// Begins a direct write and returns when what of it has to be copied is; pieces that lie at
  /// block addresses stay as they are until finish_direct(), which is to be called once for it.
  [[nodiscard]] Begun begin_direct(int fd, int buffered_fd, std::span<const ByteSpan> pieces,
                                   std::uint64_t offset);
  [[nodiscard]] Status finish_direct(Begun begun);
  /// Whether finish_direct() would return at once.
  [[nodiscard]] bool is_done(Begun begun);

  struct Ring;  ///< the implementation's own
  class DirectWrite;

 private:
  explicit Uring(std::unique_ptr<Ring> ring);
  std::unique_ptr<Ring> ring_;
  std::map<Begun, std::unique_ptr<DirectWrite>> begun_;
  std::uint64_t next_begun_ = 0;
};

}  // namespace vmshadow::io
