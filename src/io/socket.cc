#include "io/socket.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <memory>

#include "base/assert.h"

namespace vmshadow::io {
namespace {

constexpr int kListenBacklog = 128;

int poll_timeout_ms(Deadline deadline) {
  if (deadline == kNoDeadline) return -1;
  const auto left =
      std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
  return static_cast<int>(std::clamp<std::int64_t>(left.count(), 0, 60'000));
}

bool has_passed(Deadline deadline) {
  return deadline != kNoDeadline && std::chrono::steady_clock::now() >= deadline;
}

Result<sockaddr_un> unix_address(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path) {
    return fail(Errc::invalid_argument, fmt::format("socket path '{}' must have 1 to {} characters",
                                                    path, sizeof address.sun_path - 1));
  }
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  return address;
}

Status finish_connect(int fd, Deadline deadline, const std::string& what) {
  if (auto ready = wait_for(fd, POLLOUT, deadline); !ready) {
    return fail(std::move(ready).error().with_context(what));
  }
  int error = 0;
  socklen_t size = sizeof error;
  ::getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
  if (error != 0) return fail_errno(error, what);
  return {};
}

struct AddrinfoDeleter {
  void operator()(addrinfo* list) const { ::freeaddrinfo(list); }
};
using AddrinfoList = std::unique_ptr<addrinfo, AddrinfoDeleter>;

Result<AddrinfoList> resolve(const TcpAddress& address, int flags) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = flags | AI_NUMERICSERV;
  addrinfo* list = nullptr;
  const std::string port = std::to_string(address.port);
  const int rc = ::getaddrinfo(address.host.empty() ? nullptr : address.host.c_str(), port.c_str(),
                               &hints, &list);
  if (rc != 0) {
    return fail(Errc::not_found,
                fmt::format("cannot resolve '{}': {}", address.host, ::gai_strerror(rc)));
  }
  return AddrinfoList(list);
}

}  // namespace

std::string TcpAddress::text() const {
  return host.find(':') == std::string::npos ? fmt::format("{}:{}", host, port)
                                             : fmt::format("[{}]:{}", host, port);
}

Result<TcpAddress> parse_tcp_address(const std::string& text) {
  const auto malformed = [&] {
    return fail(Errc::invalid_argument,
                fmt::format("'{}' is not an address: expected HOST:PORT or [IPv6]:PORT", text));
  };
  const std::size_t colon = text.rfind(':');
  if (colon == std::string::npos) return malformed();
  TcpAddress address;
  address.host = text.substr(0, colon);
  if (!address.host.empty() && address.host.front() == '[') {
    if (address.host.size() < 2 || address.host.back() != ']') return malformed();
    address.host = address.host.substr(1, address.host.size() - 2);
  } else if (address.host.find(':') != std::string::npos) {
    return malformed();
  }
  const char* first = text.data() + colon + 1;
  const char* last = text.data() + text.size();
  const auto [end, error] = std::from_chars(first, last, address.port);
  if (error != std::errc{} || end != last) return malformed();
  return address;
}

Result<UniqueFd> connect_tcp(const TcpAddress& address, Deadline deadline) {
  VMSHADOW_ASSIGN(const AddrinfoList list, resolve(address, 0));
  Error last{Errc::not_found, fmt::format("'{}' has no address", address.host)};
  for (const addrinfo* a = list.get(); a != nullptr; a = a->ai_next) {
    const std::string what = fmt::format("connecting to {}", address.text());
    UniqueFd fd(::socket(a->ai_family, a->ai_socktype | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    if (!fd) {
      last = errno_error(errno, what);  // an address family this host does not have
      continue;
    }
    if (::connect(fd.get(), a->ai_addr, a->ai_addrlen) != 0 && errno != EINPROGRESS) {
      last = errno_error(errno, what);
      continue;
    }
    if (auto connected = finish_connect(fd.get(), deadline, what); !connected) {
      last = std::move(connected).error();
      continue;
    }
    const int one = 1;
    ::setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
  }
  return fail(std::move(last));
}

Result<UniqueFd> connect_unix(const std::string& path, Deadline deadline) {
  VMSHADOW_ASSIGN(const sockaddr_un address, unix_address(path));
  const std::string what = fmt::format("connecting to {}", path);
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd) return fail_errno(errno, what);
  while (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    // EAGAIN: the listener's backlog is full; there is nothing to poll for.
    if (errno == ECONNREFUSED) {
      struct stat file {};
      if (::stat(path.c_str(), &file) == 0 && !S_ISSOCK(file.st_mode)) {
        return fail(Errc::invalid_argument, what + ": it is not a socket");
      }
      return fail_errno(ECONNREFUSED, what);
    }
    if (errno != EAGAIN) return fail_errno(errno, what);
    if (has_passed(deadline)) return fail(Errc::timed_out, what + ": the listener does not accept");
    ::poll(nullptr, 0, 10);
  }
  return fd;
}

Result<UniqueFd> listen_tcp(const TcpAddress& address) {
  VMSHADOW_ASSIGN(const AddrinfoList list, resolve(address, AI_PASSIVE));
  const std::string what = fmt::format("listening on {}", address.text());
  const addrinfo* a = list.get();
  UniqueFd fd(::socket(a->ai_family, a->ai_socktype | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd) return fail_errno(errno, what);
  const int one = 1;
  ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (::bind(fd.get(), a->ai_addr, a->ai_addrlen) != 0) return fail_errno(errno, what);
  if (::listen(fd.get(), kListenBacklog) != 0) return fail_errno(errno, what);
  return fd;
}

Result<UniqueFd> listen_unix(const std::string& path) {
  VMSHADOW_ASSIGN(const sockaddr_un address, unix_address(path));
  const std::string what = fmt::format("listening on {}", path);
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd) return fail_errno(errno, what);
  const auto bind_fd = [&] {
    return ::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address);
  };
  if (bind_fd() != 0) {
    if (errno != EADDRINUSE) return fail_errno(errno, what);
    if (connect_unix(path, deadline_after(std::chrono::seconds(1)))) {
      return fail(Errc::in_use, fmt::format("{}: another process listens there", what));
    }
    struct stat file {};
    if (::lstat(path.c_str(), &file) != 0 || !S_ISSOCK(file.st_mode)) {
      return fail(Errc::already_exists, fmt::format("{}: a file of another kind is there", what));
    }
    ::unlink(path.c_str());
    if (bind_fd() != 0) return fail_errno(errno, what);
  }
  if (::listen(fd.get(), kListenBacklog) != 0) return fail_errno(errno, what);
  return fd;
}

Result<std::uint16_t> local_port(int fd) {
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  if (::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    return fail_errno(errno, "reading the socket's own address");
  }
  // Both families keep the port in the same place.
  return ntohs(reinterpret_cast<const sockaddr_in*>(&address)->sin_port);
}

std::string peer_text(int fd) {
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  if (::getpeername(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0) return "unknown peer";
  if (address.ss_family == AF_UNIX) return "a local socket";
  char host[NI_MAXHOST];
  char port[NI_MAXSERV];
  if (::getnameinfo(reinterpret_cast<sockaddr*>(&address), size, host, sizeof host, port,
                    sizeof port, NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
    return "unknown peer";
  }
  return fmt::format("{}:{}", host, port);
}

Result<int> peer_pid(int unix_fd) {
  ucred credentials{};
  socklen_t size = sizeof credentials;
  if (::getsockopt(unix_fd, SOL_SOCKET, SO_PEERCRED, &credentials, &size) != 0) {
    return fail_errno(errno, "reading the peer's process id");
  }
  return static_cast<int>(credentials.pid);
}

Result<std::optional<UniqueFd>> accept_connection(int listen_fd, int wake_fd, Deadline deadline) {
  for (;;) {
    pollfd fds[2] = {{listen_fd, POLLIN, 0}, {wake_fd, POLLIN, 0}};
    const int ready = ::poll(fds, 2, poll_timeout_ms(deadline));
    if (ready < 0 && errno != EINTR) return fail_errno(errno, "waiting for a connection");
    if (ready > 0 && fds[1].revents != 0) return std::optional<UniqueFd>{};
    if (ready > 0 && fds[0].revents != 0) {
      UniqueFd fd(::accept4(listen_fd, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
      if (fd) {
        const int one = 1;
        ::setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);  // ignored on AF_UNIX
        return std::optional<UniqueFd>{std::move(fd)};
      }
      // The peer may be gone again, or we are out of descriptors or memory for the moment.
      if (errno == EBADF || errno == EINVAL || errno == ENOTSOCK || errno == EOPNOTSUPP) {
        return fail_errno(errno, "accepting a connection");
      }
      if (errno != EAGAIN && errno != ECONNABORTED && errno != EINTR) ::poll(nullptr, 0, 100);
    }
    if (has_passed(deadline)) return std::optional<UniqueFd>{};
  }
}

Result<std::pair<UniqueFd, UniqueFd>> socket_pair() {
  int fds[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds) != 0) {
    return fail_errno(errno, "making a socket pair");
  }
  return std::pair{UniqueFd(fds[0]), UniqueFd(fds[1])};
}

void set_socket_buffers(int fd, int bytes) {
  for (const auto& [force, plain] :
       {std::pair{SO_SNDBUFFORCE, SO_SNDBUF}, std::pair{SO_RCVBUFFORCE, SO_RCVBUF}}) {
    if (::setsockopt(fd, SOL_SOCKET, force, &bytes, sizeof bytes) != 0) {
      ::setsockopt(fd, SOL_SOCKET, plain, &bytes, sizeof bytes);
    }
  }
}

Status wait_for(int fd, short events, Deadline deadline) {
  for (;;) {
    pollfd p{fd, events, 0};
    const int ready = ::poll(&p, 1, poll_timeout_ms(deadline));
    if (ready > 0) return {};
    if (ready < 0 && errno != EINTR) return fail_errno(errno, "waiting on a socket");
    if (has_passed(deadline)) return fail(Errc::timed_out, "no answer in time");
  }
}

Result<std::size_t> read_some(int fd, MutableByteSpan into, Deadline deadline) {
  VMSHADOW_ASSERT(!into.empty());
  for (;;) {
    const ssize_t got = ::recv(fd, into.data(), into.size(), 0);
    if (got >= 0) return static_cast<std::size_t>(got);
    if (errno == EINTR) continue;
    if (errno != EAGAIN) return fail_errno(errno, "reading from a socket");
    VMSHADOW_TRY(wait_for(fd, POLLIN, deadline));
  }
}

Status read_exact(int fd, MutableByteSpan into, Deadline deadline) {
  std::size_t done = 0;
  while (done < into.size()) {
    VMSHADOW_ASSIGN(const std::size_t got, read_some(fd, into.subspan(done), deadline));
    if (got == 0) {
      return fail(Errc::closed, fmt::format("the peer closed the connection after {} of {} bytes",
                                            done, into.size()));
    }
    done += got;
  }
  return {};
}

Status write_all(int fd, ByteSpan bytes, Deadline deadline) {
  while (!bytes.empty()) {
    const ssize_t put = ::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (put >= 0) {
      bytes = bytes.subspan(static_cast<std::size_t>(put));
      continue;
    }
    if (errno == EINTR) continue;
    if (errno != EAGAIN) return fail_errno(errno, "writing to a socket");
    VMSHADOW_TRY(wait_for(fd, POLLOUT, deadline));
  }
  return {};
}

Status write_with_fd(int unix_fd, ByteSpan bytes, int passed, Deadline deadline) {
  VMSHADOW_ASSERT(!bytes.empty());
  iovec part{const_cast<std::byte*>(bytes.data()), bytes.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(header), &passed, sizeof passed);
  for (;;) {
    const ssize_t put = ::sendmsg(unix_fd, &message, MSG_NOSIGNAL);
    if (put >= 0) return write_all(unix_fd, bytes.subspan(static_cast<std::size_t>(put)), deadline);
    if (errno == EINTR) continue;
    if (errno != EAGAIN) return fail_errno(errno, "passing a descriptor");
    VMSHADOW_TRY(wait_for(unix_fd, POLLOUT, deadline));
  }
}

UniqueFd take_passed_fd(int unix_fd) {
  std::byte byte{};
  iovec part{&byte, 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  if (::recvmsg(unix_fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC) <= 0) return {};
  const cmsghdr* header = CMSG_FIRSTHDR(&message);
  if (header == nullptr || header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS ||
      header->cmsg_len != CMSG_LEN(sizeof(int))) {
    return {};
  }
  int passed = -1;
  std::memcpy(&passed, CMSG_DATA(header), sizeof passed);
  return UniqueFd(passed);
}

}  // namespace vmshadow::io
