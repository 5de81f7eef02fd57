// Stream sockets: connect, listen, and whole reads and writes under a deadline.
//
// Every descriptor is non-blocking and close-on-exec; waiting is done with poll(2), so that a
// deadline holds against a peer that sends one byte at a time. No thread-safety beyond the
// kernel's: one reader and one writer per descriptor.
#pragma once

#include <sys/uio.h>

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include <vmshadow/result.h>
#include <vmshadow/types.h>

#include "base/unique_fd.h"

namespace vmshadow::io {

using Deadline = std::chrono::steady_clock::time_point;
[[nodiscard]] inline Deadline deadline_after(std::chrono::nanoseconds d) {
  return std::chrono::steady_clock::now() + d;
}
/// No deadline.
inline constexpr Deadline kNoDeadline = Deadline::max();

/// "HOST:PORT", "[v6]:PORT" or ":PORT" (listens on all IPv4 addresses).
struct TcpAddress {
  std::string host;
  std::uint16_t port{};
  [[nodiscard]] std::string text() const;
};
[[nodiscard]] Result<TcpAddress> parse_tcp_address(const std::string& text);

[[nodiscard]] Result<UniqueFd> connect_tcp(const TcpAddress& address, Deadline deadline);
[[nodiscard]] Result<UniqueFd> connect_unix(const std::string& path, Deadline deadline);
/// Port 0 picks one; see local_port().
[[nodiscard]] Result<UniqueFd> listen_tcp(const TcpAddress& address);
/// Replaces a stale socket file; Errc::in_use if somebody still listens on it.
[[nodiscard]] Result<UniqueFd> listen_unix(const std::string& path);
[[nodiscard]] Result<std::uint16_t> local_port(int fd);
/// The peer as "host:port", for messages.
[[nodiscard]] std::string peer_text(int fd);
/// The process behind a connected unix socket (SO_PEERCRED).
[[nodiscard]] Result<int> peer_pid(int unix_fd);

/// A connection, or nullopt when `deadline` passes or `wake_fd` (if not -1) becomes readable.
[[nodiscard]] Result<std::optional<UniqueFd>> accept_connection(int listen_fd, int wake_fd,
                                                                Deadline deadline);
/// A connected pair of unix stream sockets.
[[nodiscard]] Result<std::pair<UniqueFd, UniqueFd>> socket_pair();
/// Asks for `bytes` of send and receive buffer; uses SO_*BUFFORCE where the process may.
void set_socket_buffers(int fd, int bytes);

/// Waits for `events` (POLLIN, POLLOUT) on `fd`. Errc::timed_out.
[[nodiscard]] Status wait_for(int fd, short events, Deadline deadline);
/// At least 1 and at most `into.size()` bytes; 0 at the end of the stream.
[[nodiscard]] Result<std::size_t> read_some(int fd, MutableByteSpan into, Deadline deadline);
/// All of `into`. Errc::closed if the stream ends first (the message says after how many bytes).
[[nodiscard]] Status read_exact(int fd, MutableByteSpan into, Deadline deadline);
/// All of `bytes`.
[[nodiscard]] Status write_all(int fd, ByteSpan bytes, Deadline deadline);
/// Sends `bytes` with the descriptor `passed` attached to the first of them (SCM_RIGHTS).
[[nodiscard]] Status write_with_fd(int unix_fd, ByteSpan bytes, int passed, Deadline deadline);
/// A descriptor that has arrived with a byte of its own, close-on-exec; nothing if none has. Never
/// waits, and allocates nothing.
[[nodiscard]] UniqueFd take_passed_fd(int unix_fd);

}  // namespace vmshadow::io
