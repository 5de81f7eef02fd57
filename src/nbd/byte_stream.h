// What a conversation reads from and writes to: a socket, or a test's bytes.
#pragma once

#include <chrono>
#include <span>
#include <vector>

#include <vmshadow/result.h>
#include <vmshadow/types.h>

#include "io/socket.h"

namespace vmshadow::nbd {

class ByteStream {
 public:
  virtual ~ByteStream() = default;
  /// All of `into`. Errc::closed if the stream ends first, Errc::timed_out.
  [[nodiscard]] virtual Status read(MutableByteSpan into) = 0;
  [[nodiscard]] virtual Status write(ByteSpan bytes) = 0;
  /// From now on the peer may be silent for as long as it likes: it is a disk's owner.
  virtual void may_be_idle() {}
};

/// A connected socket, which outlives it. Until may_be_idle() everything must be over by
/// `handshake`; no reply may take longer than `reply_within` to be taken. Reads ahead: a small
/// write's head and data, and what follows, come with one call of the system.
class SocketStream final : public ByteStream {
 public:
  SocketStream(int fd, io::Deadline handshake, std::chrono::milliseconds reply_within)
      : fd_(fd), read_by_(handshake), reply_within_(reply_within), ahead_(kReadAheadBytes) {}

  [[nodiscard]] Status read(MutableByteSpan into) override;
  [[nodiscard]] Status write(ByteSpan bytes) override {
    return io::write_all(fd_, bytes, io::deadline_after(reply_within_));
  }
  void may_be_idle() override { read_by_ = io::kNoDeadline; }

 private:
  static constexpr std::size_t kReadAheadBytes = std::size_t{64} << 10;

  const int fd_;
  io::Deadline read_by_;
  const std::chrono::milliseconds reply_within_;
  std::vector<std::byte> ahead_;
  std::size_t taken_ = 0;  // [taken_, filled_) of it was received and not yet given out
  std::size_t filled_ = 0;
};

/// Reads a structure of integers.
template <class Struct>
[[nodiscard]] Result<Struct> read_struct(ByteStream& stream) {
  Struct value;
  VMSHADOW_TRY(stream.read(std::as_writable_bytes(std::span(&value, 1))));
  return value;
}
/// Its bytes.
template <class Struct>
[[nodiscard]] ByteSpan bytes_of(const Struct& value) {
  return std::as_bytes(std::span(&value, 1));
}

}  // namespace vmshadow::nbd
