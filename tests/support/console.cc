#include "support/console.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>

#include "base/assert.h"

namespace vmshadow::test {
namespace {

constexpr std::size_t kShownBytes = 400;

// For messages: the last bytes, control characters made harmless.
std::string tail_of(std::string_view raw) {
  std::string shown(raw.substr(raw.size() > kShownBytes ? raw.size() - kShownBytes : 0));
  for (char& c : shown) {
    if ((c < ' ' && c != '\n') || c == 0x7f) c = '.';
  }
  return shown;
}

/// A unix socket takes 278 writes of a byte each (three lines of a witness, some 30 ms) that nobody
/// has read. Then QEMU's serial port keeps what the guest takes for sent, up to two bytes, and
/// sends it after a restore: on a busy host a reader that is given no processor would make a
/// witness's bytes come twice. So it goes before ordinary threads, where that is allowed.
void go_first() { ::setpriority(PRIO_PROCESS, static_cast<id_t>(::gettid()), -20); }

}  // namespace

Result<std::unique_ptr<Console>> Console::listen(const std::string& path) {
  std::unique_ptr<Console> console(new Console(path));
  VMSHADOW_ASSIGN(console->listener_, io::listen_unix(path));
  console->stop_.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  console->reader_ = std::thread([c = console.get()] { c->read_socket(); });
  return console;
}

std::unique_ptr<Console> Console::follow(const std::string& path) {
  std::unique_ptr<Console> console(new Console(path));
  console->stop_.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  console->reader_ = std::thread([c = console.get()] { c->read_file(); });
  return console;
}

Console::~Console() {
  ::eventfd_write(stop_.get(), 1);
  reader_.join();
}

std::string Console::chardev(const std::string& id) const {
  VMSHADOW_ASSERT(listener_);
  return fmt::format("socket,id={},path={},server=off", id, path_);
}

void Console::read_socket() {
  go_first();
  auto accepted = io::accept_connection(listener_.get(), stop_.get(), io::kNoDeadline);
  if (!accepted || !*accepted) return close();
  const int fd = (*accepted)->get();
  {
    const std::lock_guard lock(mutex_);
    peer_ = std::move(**accepted);
  }
  std::array<char, 16384> buffer;
  for (;;) {
    pollfd fds[2] = {{fd, POLLIN, 0}, {stop_.get(), POLLIN, 0}};
    if (::poll(fds, 2, -1) < 0 && errno != EINTR) return close();
    if (fds[1].revents != 0) return close();
    if (fds[0].revents == 0) continue;
    const ssize_t got = ::read(fd, buffer.data(), buffer.size());
    if (got > 0) take({buffer.data(), static_cast<std::size_t>(got)});
    if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR)) return close();
  }
}

void Console::read_file() {
  UniqueFd file;
  std::array<char, 16384> buffer;
  for (;;) {
    pollfd stop{stop_.get(), POLLIN, 0};
    if (::poll(&stop, 1, 1) > 0) return close();
    if (!file) file.reset(::open(path_.c_str(), O_RDONLY | O_CLOEXEC));
    for (ssize_t got = 1; file && got > 0;) {
      got = ::read(file.get(), buffer.data(), buffer.size());
      if (got > 0) take({buffer.data(), static_cast<std::size_t>(got)});
    }
  }
}

void Console::take(std::string_view chunk) {
  const MonotonicTime stamp = system_clock().monotonic();
  const std::lock_guard lock(mutex_);
  std::size_t searched = raw_.size();
  raw_ += chunk;
  for (;;) {
    const std::size_t end = raw_.find('\n', searched);
    if (end == std::string::npos) break;
    std::string text = raw_.substr(line_start_, end - line_start_);
    if (!text.empty() && text.back() == '\r') text.pop_back();
    lines_.push_back({std::move(text), stamp, line_start_});
    line_start_ = searched = end + 1;
  }
  changed_.notify_all();
}

void Console::close() {
  const std::lock_guard lock(mutex_);
  closed_ = true;
  changed_.notify_all();
}

std::string Console::raw() const {
  const std::lock_guard lock(mutex_);
  return raw_;
}

std::size_t Console::size() const {
  const std::lock_guard lock(mutex_);
  return raw_.size();
}

std::vector<ConsoleLine> Console::lines() const {
  const std::lock_guard lock(mutex_);
  return lines_;
}

bool Console::closed() const {
  const std::lock_guard lock(mutex_);
  return closed_;
}

template <class Ready>
Status Console::wait_until(const std::string& what, io::Deadline deadline, Ready ready) const {
  std::unique_lock lock(mutex_);
  changed_.wait_until(lock, deadline, [&] { return ready() || closed_; });
  if (ready()) return {};
  return fail(closed_ ? Errc::closed : Errc::timed_out,
              fmt::format("the console {} without {}; it ended in:\n{}",
                          closed_ ? "closed" : "went on", what, tail_of(raw_)));
}

Result<std::size_t> Console::wait_for(std::string_view text, std::size_t from,
                                      io::Deadline deadline) const {
  std::size_t found = std::string::npos;
  VMSHADOW_TRY(wait_until(fmt::format("'{}'", text), deadline, [&] {
    found = raw_.find(text, from);
    return found != std::string::npos;
  }));
  return found + text.size();
}

Status Console::wait_for_lines(std::size_t count, io::Deadline deadline) const {
  return wait_until(fmt::format("{} lines", count), deadline,
                    [&] { return lines_.size() >= count; });
}

Status Console::send(std::string_view text) {
  int fd = -1;
  {
    const std::lock_guard lock(mutex_);
    fd = peer_.get();
  }
  if (fd < 0) return fail(Errc::closed, fmt::format("nobody has connected to {}", path_));
  return io::write_all(fd, std::as_bytes(std::span(text)),
                       io::deadline_after(std::chrono::seconds(10)));
}

}  // namespace vmshadow::test
