#include "support/tcp_proxy.h"

#include <poll.h>
#include <sys/socket.h>

#include <array>
#include <deque>
#include <list>
#include <vector>

namespace vmshadow::test {
namespace {

constexpr int kTickMs = 2;
constexpr std::size_t kReadBytes = std::size_t{64} << 10;
/// More than this on its way in one direction and nothing more is read.
constexpr std::size_t kChunksMax = 256;

struct Chunk {
  io::Deadline due;
  std::vector<std::byte> bytes;
  std::size_t sent = 0;
};

/// One direction of a connection.
struct Pipe {
  int from;
  int to;
  std::deque<Chunk> chunks;
  bool ended = false;

  /// Bytes taken; nullopt if the connection is over.
  std::optional<std::size_t> take(std::chrono::milliseconds delay) {
    if (ended || chunks.size() >= kChunksMax) return 0;
    Chunk chunk{io::deadline_after(delay), std::vector<std::byte>(kReadBytes)};
    const ssize_t got = ::recv(from, chunk.bytes.data(), chunk.bytes.size(), MSG_DONTWAIT);
    if (got < 0)
      return errno == EAGAIN || errno == EINTR ? std::optional<std::size_t>(0) : std::nullopt;
    if (got == 0) {
      ended = true;
      return 0;
    }
    chunk.bytes.resize(static_cast<std::size_t>(got));
    chunks.push_back(std::move(chunk));
    return static_cast<std::size_t>(got);
  }

  /// False if the connection is over.
  bool give() {
    while (!chunks.empty() && chunks.front().due <= io::Deadline::clock::now()) {
      Chunk& chunk = chunks.front();
      const ssize_t put = ::send(to, chunk.bytes.data() + chunk.sent,
                                 chunk.bytes.size() - chunk.sent, MSG_DONTWAIT | MSG_NOSIGNAL);
      if (put < 0) return errno == EAGAIN || errno == EINTR;
      chunk.sent += static_cast<std::size_t>(put);
      if (chunk.sent == chunk.bytes.size()) chunks.pop_front();
    }
    if (chunks.empty() && ended) ::shutdown(to, SHUT_WR);
    return true;
  }
};

}  // namespace

struct TcpProxy::Connection {
  UniqueFd client;
  UniqueFd target;
  Pipe up{client.get(), target.get(), {}, false};
  Pipe down{target.get(), client.get(), {}, false};
  [[nodiscard]] bool over() const {
    return up.ended && down.ended && up.chunks.empty() && down.chunks.empty();
  }
};

Result<std::unique_ptr<TcpProxy>> TcpProxy::start(std::uint16_t target_port) {
  VMSHADOW_ASSIGN(UniqueFd listener, io::listen_tcp({"127.0.0.1", 0}));
  VMSHADOW_ASSIGN(const std::uint16_t port, io::local_port(listener.get()));
  return std::unique_ptr<TcpProxy>(new TcpProxy(std::move(listener), port, target_port));
}

TcpProxy::TcpProxy(UniqueFd listener, std::uint16_t port, std::uint16_t target_port)
    : listener_(std::move(listener)), port_(port), target_port_(target_port) {
  thread_ = std::thread([this] { run(); });
}

TcpProxy::~TcpProxy() {
  ending_ = true;
  thread_.join();
}

void TcpProxy::cut() {
  cut_now_ = true;
  while (cut_now_ && !ending_) ::poll(nullptr, 0, 1);
}

void TcpProxy::run() {
  std::list<Connection> connections;
  while (!ending_) {
    std::vector<pollfd> fds{{listener_.get(), POLLIN, 0}};
    for (const Connection& c : connections) {
      if (stalled_) break;
      if (!c.up.ended) fds.push_back({c.up.from, POLLIN, 0});
      if (!c.down.ended) fds.push_back({c.down.from, POLLIN, 0});
    }
    ::poll(fds.data(), fds.size(), kTickMs);
    if ((fds[0].revents & POLLIN) != 0) {
      auto client = io::accept_connection(listener_.get(), -1, io::deadline_after({}));
      auto target =
          io::connect_tcp({"127.0.0.1", target_port_}, io::deadline_after(std::chrono::seconds(1)));
      // A target that is not there: the client sees its connection closed.
      if (client && *client && target)
        connections.push_back({std::move(**client), *std::move(target)});
    }
    if (!stalled_) {
      const std::chrono::milliseconds delay{delay_ms_.load()};
      connections.remove_if([&](Connection& c) {
        const auto up = c.up.take(delay);
        if (up) bytes_up_ += *up;
        return !up || !c.down.take(delay) || !c.up.give() || !c.down.give() || c.over();
      });
    }
    if (cut_now_ || bytes_up_ >= cut_at_) {
      connections.clear();
      cut_at_ = kNever;
      cut_now_ = false;
    }
  }
}

}  // namespace vmshadow::test
