#include "nbd/server.h"

#include <spdlog/spdlog.h>

#include <utility>

#include "nbd/transmission.h"

namespace vmshadow::nbd {

Status serve_client(int fd, std::span<const Export> exports, const ServerOptions& options) {
  SocketStream stream(fd, io::deadline_after(options.handshake_within), options.reply_within);
  VMSHADOW_ASSIGN(const auto agreement, negotiate(stream, exports));
  return agreement ? transmit(stream, *agreement) : Status{};
}

Result<std::unique_ptr<Server>> Server::listen(const std::string& unix_path,
                                               std::vector<Export> exports, ServerOptions options) {
  VMSHADOW_ASSIGN(UniqueFd listener, io::listen_unix(unix_path));
  return std::unique_ptr<Server>(new Server(std::move(listener), std::move(exports), options));
}

Result<std::unique_ptr<Server>> Server::listen(const io::TcpAddress& address,
                                               std::vector<Export> exports, ServerOptions options) {
  VMSHADOW_ASSIGN(UniqueFd listener, io::listen_tcp(address));
  return std::unique_ptr<Server>(new Server(std::move(listener), std::move(exports), options));
}

Server::Server(UniqueFd listener, std::vector<Export> exports, ServerOptions options)
    : listener_(std::move(listener)),
      exports_(std::move(exports)),
      options_(options),
      // Whoever is one too many sees the connection closed: NBD has no word before its greeting.
      connections_(
          options.connections_max, [this](UniqueFd fd) { serve_connection(std::move(fd)); },
          [](UniqueFd fd) {
            spdlog::warn("NBD client {}: too many connections, refused", io::peer_text(fd.get()));
          }) {}

Status Server::serve(int wake_fd) { return connections_.accept_from(listener_.get(), wake_fd); }

void Server::serve_connection(UniqueFd fd) const {
  const std::string peer = io::peer_text(fd.get());
  const auto done = serve_client(fd.get(), exports_, options_);
  if (done || done.error().code == Errc::closed) return;
  spdlog::warn("NBD client {}: {}", peer, done.error().message);
}

}  // namespace vmshadow::nbd
