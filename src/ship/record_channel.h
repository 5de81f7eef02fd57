// Records over a stream socket: whole ones in, whole ones out.
//
// Nothing from the peer is trusted: prefix and bounds are checked before a body is waited for, the
// body's checksum before anybody sees it, and the buffer never grows past one record of the largest
// kind. One thread reads; writing is for one thread at a time.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <vector>

#include <vmshadow/result.h>
#include <vmshadow/types.h>

#include "base/unique_fd.h"
#include "format/record.h"
#include "io/socket.h"

namespace vmshadow::ship {

class RecordChannel {
 public:
  /// Takes a connected non-blocking stream socket.
  explicit RecordChannel(UniqueFd fd);

  struct Record {
    format::RecordPrefix prefix;
    ByteSpan bytes;  ///< prefix and body; valid until the next read()
    [[nodiscard]] ByteSpan body() const { return bytes.subspan(format::kRecordPrefixBytes); }
  };
  /// The next record, its body at most `body_bytes_max`. Errc::closed at a clean end (between
  /// records) and a broken one (the message tells), Errc::timed_out, Errc::corrupt, Errc::version.
  [[nodiscard]] Result<Record> read(io::Deadline deadline,
                                    std::size_t body_bytes_max = format::kRecordBodyBytesMax);
  /// True if bytes of the next record were received already.
  [[nodiscard]] bool in_record() const { return filled_ > taken_; }
  [[nodiscard]] Status write(ByteSpan records, io::Deadline deadline);

  [[nodiscard]] int fd() const { return fd_.get(); }
  /// Ends our side and discards what the peer still sends until it closes too: closing a socket
  /// with unread bytes would reset the connection and take our last words with it.
  void linger(io::Deadline deadline);
  /// Makes a read() or write() of another thread fail at once.
  void shut_down();

 private:
  [[nodiscard]] Status fill(std::size_t bytes, io::Deadline deadline);

  UniqueFd fd_;
  std::vector<std::byte> buffer_;
  std::size_t taken_ = 0;  // [taken_, filled_) is received but not yet given out
  std::size_t filled_ = 0;
};

/// A record that a sidecar did not expect from its store: its refusal as an error, anything else as
/// Errc::protocol.
[[nodiscard]] Error refusal_or_unexpected(const RecordChannel::Record& record);

}  // namespace vmshadow::ship
