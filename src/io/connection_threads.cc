#include "io/connection_threads.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>

#include <chrono>
#include <system_error>
#include <utility>

#include "io/socket.h"

namespace vmshadow::io {
namespace {

constexpr std::chrono::milliseconds kReapEvery{1000};

}  // namespace

ConnectionThreads::ConnectionThreads(std::size_t most, Handler serve, Handler refuse)
    : most_(most), serve_(std::move(serve)), refuse_(std::move(refuse)) {}

ConnectionThreads::~ConnectionThreads() {
  for (Connection& connection : connections_) {
    ::shutdown(connection.for_shut_down.get(), SHUT_RDWR);
  }
  for (Connection& connection : connections_) connection.thread.join();
}

Status ConnectionThreads::accept_from(int listen_fd, int wake_fd) {
  for (;;) {
    VMSHADOW_ASSIGN(auto fd, accept_connection(listen_fd, wake_fd, deadline_after(kReapEvery)));
    reap_finished();
    if (fd) {
      add(std::move(*fd));
    } else if (wait_for(wake_fd, POLLIN, deadline_after({}))) {
      return {};
    }
  }
}

void ConnectionThreads::add(UniqueFd fd) {
  UniqueFd second(::fcntl(fd.get(), F_DUPFD_CLOEXEC, 0));
  if (connections_.size() >= most_ || !second) return refuse_(std::move(fd));
  Connection& connection = connections_.emplace_back();
  connection.for_shut_down = std::move(second);
  // Not moved into the thread: one that cannot be started must leave it to be refused.
  const int number = fd.release();
  try {
    connection.thread = std::thread([this, &connection, number] {
      serve_(UniqueFd(number));
      ::shutdown(connection.for_shut_down.get(), SHUT_RDWR);
      connection.done = true;
    });
  } catch (const std::system_error&) {
    connections_.pop_back();
    refuse_(UniqueFd(number));
  }
}

void ConnectionThreads::reap_finished() {
  connections_.remove_if([](Connection& connection) {
    if (!connection.done) return false;
    connection.thread.join();
    return true;
  });
}

}  // namespace vmshadow::io
