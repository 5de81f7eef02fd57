#include "qmp/standby_monitor.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <span>
#include <string_view>
#include <utility>

#include "io/socket.h"
#include "qmp/json_fields.h"

namespace vmshadow::qmp {
namespace {

// A greeting and a reply to qmp_capabilities have some hundred bytes.
constexpr std::size_t kLineBytesMax = 64 * 1024;

/// One message: QEMU writes each on a line of its own. Byte for byte, so that what follows it stays
/// in the socket.
Result<Json> read_message(int fd, const std::string& path, io::Deadline deadline) {
  std::string line;
  while (line.empty() || line.back() != '\n') {
    std::byte byte{};
    VMSHADOW_ASSIGN(const std::size_t got, io::read_some(fd, {&byte, 1}, deadline));
    if (got == 0) return fail(Errc::closed, path + ": QEMU closed the monitor's connection");
    line += static_cast<char>(byte);
    if (line.size() > kLineBytesMax) return fail(Errc::protocol, path + ": not a QMP monitor");
  }
  Json message = Json::parse(line, nullptr, false);
  if (!message.is_object()) return fail(Errc::protocol, path + ": not a QMP monitor");
  return message;
}

}  // namespace

Result<StandbyMonitor> StandbyMonitor::open(const std::string& path,
                                            std::chrono::milliseconds patience) {
  VMSHADOW_ASSIGN(UniqueFd fd, io::connect_unix(path, io::deadline_after(patience)));
  StandbyMonitor monitor(std::move(fd), path);
  VMSHADOW_TRY(monitor.shake_hands(patience));
  return monitor;
}

Status StandbyMonitor::shake_hands(std::chrono::milliseconds patience) {
  const auto deadline = io::deadline_after(patience);
  auto first = read_message(fd_.get(), path_, deadline);
  while (first && is_of_client_before(*first)) first = read_message(fd_.get(), path_, deadline);
  if (!first && first.error().code == Errc::timed_out) {
    return fail(Errc::in_use, fmt::format("{}: no greeting within {} ms: another client holds this "
                                          "monitor; give one of its own",
                                          path_, patience.count()));
  }
  if (!first) return fail(std::move(first).error());
  auto greeting = read_greeting(*first);
  if (!greeting) return fail(Errc::protocol, path_ + ": not a QMP monitor");
  greeting_ = *std::move(greeting);

  Json command = {{"execute", "qmp_capabilities"}, {"id", "hello"}};
  if (greeting_.offers_oob) command["arguments"] = {{"enable", Json::array({"oob"})}};
  const std::string text = command.dump() + "\n";
  VMSHADOW_TRY(io::write_all(fd_.get(), std::as_bytes(std::span(text)), deadline));
  for (;;) {
    VMSHADOW_ASSIGN(const Json message, read_message(fd_.get(), path_, deadline));
    // An event, or a reply to the client before us.
    if (const std::string* id = string_member(message, "id"); id == nullptr || *id != "hello") {
      continue;
    }
    if (member(message, "return") != nullptr) return {};
    return fail(Errc::protocol, path_ + ": the monitor refuses qmp_capabilities");
  }
}

bool StandbyMonitor::drain() {
  std::array<char, 4096> ignored;
  for (;;) {
    const ssize_t got = ::recv(fd_.get(), ignored.data(), ignored.size(), MSG_DONTWAIT);
    if (got > 0) {
      between_messages_ = ignored[static_cast<std::size_t>(got) - 1] == '\n';
    } else if (got < 0 && errno == EINTR) {
      continue;
    } else {
      return got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK);
    }
  }
}

Result<std::unique_ptr<Session>> StandbyMonitor::wake(SessionOptions options) && {
  const auto deadline = io::deadline_after(options.greeting_timeout);
  while (drain()) {
    if (between_messages_) {
      return Session::resume(std::move(fd_), std::move(path_), greeting_, std::move(options));
    }
    VMSHADOW_TRY(io::wait_for(fd_.get(), POLLIN, deadline));
  }
  return fail(Errc::closed, path_ + ": QEMU closed the monitor's connection");
}

}  // namespace vmshadow::qmp
