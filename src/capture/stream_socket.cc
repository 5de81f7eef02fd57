#include "capture/stream_socket.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <stdlib.h>
#include <unistd.h>

#include <string>
#include <utility>

#include "io/socket.h"
#include "qmp/commands.h"

namespace vmshadow::capture {
namespace {

constexpr const char* kSocketName = "vmshadow";

/// `migrating` is set before QEMU can have begun. If it refuses, what goes on is somebody else's.
Status ask_to_migrate(qmp::Session& session, const StreamSocketOptions& options,
                      const std::string& uri, bool& migrating) {
  if (options.just_before) VMSHADOW_TRY(options.just_before());
  migrating = true;
  auto asked = qmp::migrate(session, uri);
  if (!asked && asked.error().code == Errc::invalid_argument) migrating = false;
  return asked;
}

Result<UniqueFd> open_at_path(qmp::Session& session, const StreamSocketOptions& options,
                              bool& migrating) {
  char directory[] = "/tmp/vmshadow-XXXXXX";
  if (::mkdtemp(directory) == nullptr) return fail_errno(errno, "making a socket directory");
  const std::string path = fmt::format("{}/stream", directory);
  auto connected = [&]() -> Result<UniqueFd> {
    VMSHADOW_ASSIGN(const UniqueFd listener, io::listen_unix(path));
    VMSHADOW_TRY(ask_to_migrate(session, options, "unix:" + path, migrating));
    VMSHADOW_ASSIGN(auto peer,
                    io::accept_connection(listener.get(), -1, io::deadline_after(options.connect)));
    if (!peer) return fail(Errc::timed_out, "QEMU did not connect its migration stream");
    return std::move(*peer);
  }();
  ::unlink(path.c_str());
  ::rmdir(directory);
  if (connected) io::set_socket_buffers(connected->get(), options.buffer_bytes);
  return connected;
}

}  // namespace

// Prefers a socket pair of ours (the buffers are ours to choose); a monitor that cannot take
// descriptors gets a path to connect to.
Result<UniqueFd> open_stream(qmp::Session& session, const StreamSocketOptions& options,
                             bool& migrating) {
  VMSHADOW_ASSIGN(auto pair, io::socket_pair());
  io::set_socket_buffers(pair.first.get(), options.buffer_bytes);
  io::set_socket_buffers(pair.second.get(), options.buffer_bytes);
  const auto passed = qmp::getfd(session, kSocketName, pair.second.get());
  if (!passed) {
    spdlog::log(options.say_path ? spdlog::level::info : spdlog::level::debug,
                "this monitor takes no descriptors ({}); using a socket path instead",
                passed.error().message);
    return open_at_path(session, options, migrating);
  }
  pair.second.reset();
  auto asked = ask_to_migrate(session, options, fmt::format("fd:{}", kSocketName), migrating);
  if (asked) return std::move(pair.first);
  // Not taken: it would be left in QEMU.
  if (!migrating) static_cast<void>(qmp::closefd(session, kSocketName));
  return fail(std::move(asked).error());
}

}  // namespace vmshadow::capture
