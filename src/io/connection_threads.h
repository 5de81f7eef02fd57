// A thread for each connection that a listening socket accepts: for servers with hundreds of peers,
// not tens of thousands.
#pragma once

#include <atomic>
#include <cstddef>
#include <functional>
#include <list>
#include <thread>

#include <vmshadow/result.h>

#include "base/unique_fd.h"

namespace vmshadow::io {

class ConnectionThreads {
 public:
  using Handler = std::function<void(UniqueFd)>;

  /// `serve` runs in the connection's thread, which ends with it; `refuse`, which must be quick, in
  /// the accepting one, for what comes while there are `most`.
  ConnectionThreads(std::size_t most, Handler serve, Handler refuse);
  /// Makes every read and write of the connections fail, and waits for their threads.
  ~ConnectionThreads();

  /// Accepts until `wake_fd` becomes readable. Errors only of the listening socket itself.
  [[nodiscard]] Status accept_from(int listen_fd, int wake_fd);

 private:
  struct Connection {
    UniqueFd for_shut_down;  // a second descriptor, so that it stays valid
    std::atomic<bool> done{false};
    std::thread thread;
  };
  void add(UniqueFd fd);
  void reap_finished();

  const std::size_t most_;
  const Handler serve_;
  const Handler refuse_;
  std::list<Connection> connections_;  // of the accepting thread
};

}  // namespace vmshadow::io
