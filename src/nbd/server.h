// Serves exports over NBD, one thread per connection; a client may have several at once.
#pragma once

#include <chrono>
#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <vmshadow/result.h>

#include "base/unique_fd.h"
#include "io/connection_threads.h"
#include "io/socket.h"
#include "nbd/negotiation.h"

namespace vmshadow::nbd {

struct ServerOptions {
  std::size_t connections_max = 64;
  std::chrono::milliseconds handshake_within{10000};
  /// For a client to take a reply.
  std::chrono::milliseconds reply_within{60000};
};

/// Serves a connected client until it disconnects (success) or its connection ends: Errc::closed,
/// ::timed_out or ::protocol. Of the options, `connections_max` does not matter here.
[[nodiscard]] Status serve_client(int fd, std::span<const Export> exports,
                                  const ServerOptions& options = {});

class Server {
 public:
  /// At least one export, whose names differ.
  [[nodiscard]] static Result<std::unique_ptr<Server>> listen(const std::string& unix_path,
                                                              std::vector<Export> exports,
                                                              ServerOptions options = {});
  /// Port 0 picks a free one: io::local_port(listener()).
  [[nodiscard]] static Result<std::unique_ptr<Server>> listen(const io::TcpAddress& address,
                                                              std::vector<Export> exports,
                                                              ServerOptions options = {});

  [[nodiscard]] int listener() const { return listener_.get(); }
  /// Accepts until `wake_fd` becomes readable. Errors only of the listening socket itself.
  /// Connections go on until the server is destroyed, which ends them.
  [[nodiscard]] Status serve(int wake_fd);

 private:
  Server(UniqueFd listener, std::vector<Export> exports, ServerOptions options);
  void serve_connection(UniqueFd fd) const;

  const UniqueFd listener_;
  const std::vector<Export> exports_;
  const ServerOptions options_;
  io::ConnectionThreads connections_;
};

}  // namespace vmshadow::nbd
