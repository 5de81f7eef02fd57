#include "app/metrics_server.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <stdio.h>
#include <sys/socket.h>
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

/// Where accept(2) fails for want of descriptors or memory: no busy loop.
constexpr milliseconds kAcceptRetry{100};

int poll_ms(io::Deadline until) {
  const auto left = std::chrono::ceil<milliseconds>(until - io::Deadline::clock::now());
  return static_cast<int>(std::clamp<milliseconds::rep>(left.count(), 0, 60'000));
}

}  // namespace

MetricsServer::MetricsServer(Options options, std::function<std::string()> page,
                             std::function<void(const std::string&)> say)
    : options_(std::move(options)), make_page_(std::move(page)), say_(std::move(say)) {}

void MetricsServer::serve(int wake_fd) {
  for (;;) {
    write_file_if_due();
    std::vector<pollfd> waits{{wake_fd, POLLIN, 0}, {options_.listener.get(), POLLIN, 0}};
    for (const Connection& connection : connections_) {
      const short events = connection.answer.empty() ? POLLIN : POLLOUT;
      waits.push_back({connection.fd.get(), events, 0});
    }
    if (::poll(waits.data(), waits.size(), poll_ms(next_deadline())) < 0) continue;  // a signal
    if (waits[0].revents != 0) return;
    std::size_t i = 2;
    for (auto it = connections_.begin(); it != connections_.end(); ++i) {
      const bool late = io::Deadline::clock::now() >= it->deadline;
      const bool done = late || (waits[i].revents != 0 && !go_on(*it));
      it = done ? connections_.erase(it) : std::next(it);
    }
    if (waits[1].revents != 0) accept_all();
  }
}

io::Deadline MetricsServer::next_deadline() const {
  io::Deadline next = io::deadline_after(std::chrono::minutes(1));
  if (!options_.file.empty()) next = std::min(next, write_file_at_);
  for (const Connection& connection : connections_) next = std::min(next, connection.deadline);
  return next;
}

// At most half of the connections at a time: one that is being served is not pushed out by what
// comes in one go.
void MetricsServer::accept_all() {
  for (std::size_t i = 0; i < std::max<std::size_t>(options_.connections_max / 2, 1); ++i) {
    UniqueFd fd(::accept4(options_.listener.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (!fd) {
      if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
        ::poll(nullptr, 0, static_cast<int>(kAcceptRetry.count()));
      }
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
    page_ = make_page_();
    page_until_ = now + options_.page_every;
  }
  return page_;
}

void MetricsServer::write_file_if_due() {
  if (options_.file.empty() || io::Deadline::clock::now() < write_file_at_) return;
  write_file_at_ = io::deadline_after(options_.file_every);
  const Status written = write_file();
  const bool failed_before = std::exchange(file_failed_, !written);
  if (!written && !failed_before) say_(written.error().message);
}

// A reader finds the old page or the new one, whole. Not synced: after a crash of the host its
// figures are of no use.
Status MetricsServer::write_file() {
  const std::string what = fmt::format("writing the metrics file '{}'", options_.file);
  // The collector reads *.prom: the one in the making must not end so.
  const std::string fresh = options_.file + ".new";
  {
    const UniqueFd fd(::open(fresh.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
    if (!fd) return fail_errno(errno, what);
    const std::string& text = page();
    for (std::size_t at = 0; at < text.size();) {
      const ssize_t put = ::write(fd.get(), text.data() + at, text.size() - at);
      if (put < 0 && errno == EINTR) continue;
      if (put <= 0) return fail_errno(put < 0 ? errno : ENOSPC, what);
      at += static_cast<std::size_t>(put);
    }
  }
  if (::rename(fresh.c_str(), options_.file.c_str()) != 0) return fail_errno(errno, what);
  return {};
}

}  // namespace vmshadow::app
