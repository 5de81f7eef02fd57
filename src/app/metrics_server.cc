#include "app/metrics_server.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>
#include <vector>

#include "app/metrics_http.h"

namespace vmshadow::app {
namespace {

using std::chrono::milliseconds;

/// Where the system refuses what it should do at once: no busy loop.
constexpr milliseconds kRetry{100};
/// Whoever collects it is another user, and an operator's umask says nothing of that.
constexpr mode_t kFileMode = 0644;

void pause_for(milliseconds time) { ::poll(nullptr, 0, static_cast<int>(time.count())); }

int poll_ms(io::Deadline until) {
  const auto left = std::chrono::ceil<milliseconds>(until - io::Deadline::clock::now());
  return static_cast<int>(std::clamp<milliseconds::rep>(left.count(), 0, 60'000));
}

}  // namespace

MetricsServer::MetricsServer(Options options, Calls calls)
    : options_(std::move(options)), calls_(std::move(calls)) {}

void MetricsServer::serve(int wake_fd) {
  for (;;) {
    listen_if_due();
    write_file_if_due();
    std::vector<pollfd> waits{{wake_fd, POLLIN, 0}, {listener_.get(), POLLIN, 0}};
    for (const Connection& connection : connections_) {
      const short events = connection.answer.empty() ? POLLIN : POLLOUT;
      waits.push_back({connection.fd.get(), events, 0});
    }
    if (::poll(waits.data(), waits.size(), poll_ms(next_deadline())) < 0) {
      if (errno != EINTR) pause_for(kRetry);
      continue;
    }
    if (waits[0].revents != 0) break;
    std::size_t i = 2;
    for (auto it = connections_.begin(); it != connections_.end(); ++i) {
      const bool late = io::Deadline::clock::now() >= it->deadline;
      const bool done = late || (waits[i].revents != 0 && !go_on(*it));
      it = done ? connections_.erase(it) : std::next(it);
    }
    if (waits[1].revents != 0) accept_all();
  }
  if (file_written_) ::unlink(options_.file.c_str());
}

io::Deadline MetricsServer::next_deadline() const {
  io::Deadline next = io::deadline_after(std::chrono::minutes(1));
  if (options_.listen && !listener_) next = std::min(next, listening_.due);
  if (!options_.file.empty()) next = std::min(next, writing_.due);
  for (const Connection& connection : connections_) next = std::min(next, connection.deadline);
  return next;
}

void MetricsServer::say_once(Attempt& attempt, const Status& outcome) const {
  const bool failed_before = std::exchange(attempt.failed, !outcome);
  if (!outcome && !failed_before) calls_.say(outcome.error().message);
}

void MetricsServer::listen_if_due() {
  if (!options_.listen || listener_ || io::Deadline::clock::now() < listening_.due) return;
  const auto url = listen();
  say_once(listening_, url ? Status{} : fail(url.error()));
  listening_.due = io::deadline_after(options_.listen_every);
  if (url) calls_.announce(*url);
}

Result<std::string> MetricsServer::listen() {
  io::TcpAddress address = *options_.listen;
  auto listener = io::listen_tcp(address);
  if (!listener) {
    Error error = std::move(listener).error().with_context("--metrics");
    if (error.code == Errc::in_use) {
      error.message += ": end what listens there, or choose another port";
    }
    error.message += fmt::format("; no metrics there, tried again every {} s",
                                 options_.listen_every.count() / 1000);
    return fail(std::move(error));
  }
  listener_ = *std::move(listener);
  VMSHADOW_ASSIGN(address.port, io::local_port(listener_.get()));
  return fmt::format("http://{}/metrics", address.text());
}

// At most half of the connections at a time: one that is being served is not pushed out by what
// comes in one go.
void MetricsServer::accept_all() {
  for (std::size_t i = 0; i < std::max<std::size_t>(options_.connections_max / 2, 1); ++i) {
    UniqueFd fd(::accept4(listener_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (!fd) {
      // Such as for want of descriptors: the peer goes on waiting, and poll goes on saying so.
      if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED) pause_for(kRetry);
      return;
    }
    if (connections_.size() >= options_.connections_max) connections_.pop_front();
    connections_.push_back({std::move(fd), io::deadline_after(options_.request_within), {}, {}, 0});
    // Most have sent their request by now.
    if (!go_on(connections_.back())) connections_.pop_back();
  }
}

bool MetricsServer::go_on(Connection& connection) {
  while (connection.answer.empty()) {
    std::array<char, 4096> piece;
    const ssize_t got = ::recv(connection.fd.get(), piece.data(), piece.size(), 0);
    if (got == 0) return false;
    if (got < 0) return errno == EAGAIN || errno == EINTR;
    connection.request.append(piece.data(), static_cast<std::size_t>(got));
    if (auto answer = answer_scrape(connection.request, [this] { return page(); })) {
      connection.answer = *std::move(answer);
    }
  }
  while (connection.sent < connection.answer.size()) {
    const ssize_t put = ::send(connection.fd.get(), connection.answer.data() + connection.sent,
                               connection.answer.size() - connection.sent, MSG_NOSIGNAL);
    if (put < 0) return errno == EAGAIN || errno == EINTR;
    connection.sent += static_cast<std::size_t>(put);
  }
  return false;
}

const std::string& MetricsServer::page() {
  const io::Deadline now = io::Deadline::clock::now();
  if (!page_until_ || now >= *page_until_) {
    page_ = calls_.page();
    page_until_ = now + options_.page_every;
  }
  return page_;
}

void MetricsServer::write_file_if_due() {
  if (options_.file.empty() || io::Deadline::clock::now() < writing_.due) return;
  say_once(writing_, write_file());
  writing_.due = io::deadline_after(options_.file_every);
}

// A reader finds the old page or the new one, whole. Not synced: after a crash of the host its
// figures are of no use.
Status MetricsServer::write_file() {
  const std::string what = fmt::format("writing the metrics file '{}'", options_.file);
  // The collector reads *.prom: the one in the making must not end so. A new file of our own, never
  // through a link that somebody has put there; what a server that was killed has left goes.
  const std::string fresh = options_.file + ".new";
  ::unlink(fresh.c_str());
  {
    const UniqueFd fd(
        ::open(fresh.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, kFileMode));
    if (!fd || ::fchmod(fd.get(), kFileMode) != 0) return fail_errno(errno, what);
    const std::string& text = page();
    for (std::size_t at = 0; at < text.size();) {
      const ssize_t put = ::write(fd.get(), text.data() + at, text.size() - at);
      if (put < 0 && errno == EINTR) continue;
      if (put <= 0) return fail_errno(put < 0 ? errno : ENOSPC, what);
      at += static_cast<std::size_t>(put);
    }
  }
  if (::rename(fresh.c_str(), options_.file.c_str()) != 0) return fail_errno(errno, what);
  file_written_ = true;
  return {};
}

}  // namespace vmshadow::app
