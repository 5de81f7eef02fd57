// One QMP conversation: greeting, capabilities, commands with ids, events, descriptors.
//
//   connect ─► greeting ─► qmp_capabilities (oob where offered) ─► execute* … ─► closed
//
// A reader thread owns the receiving side: it matches replies to waiting callers by id and hands
// events to the handler. Any number of threads may execute() at once, but none may still do so when
// the session is destroyed. After the connection is lost,
// or broke the protocol, every call returns the same Error that says why.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include <vmshadow/result.h>

#include "base/unique_fd.h"
#include "io/socket.h"

namespace vmshadow::qmp {

using Json = nlohmann::json;

struct QemuVersion {
  int major{}, minor{}, micro{};
  std::string package;  ///< distribution suffix, may be empty
  auto operator<=>(const QemuVersion&) const = default;
  [[nodiscard]] std::string text() const;  ///< "7.2.22"
};

/// An event. `data` lives as long as the handler's call.
struct Event {
  const std::string& name;
  const Json& data;  ///< an object; empty if the event has none
  /// QEMU's own stamp: time since 1970, microseconds.
  std::chrono::microseconds stamp;
};
/// Called on the reader thread, in order; must not block nor call back into the session.
using EventHandler = std::function<void(const Event&)>;

struct Greeting;

struct SessionOptions {
  /// For connecting and the greeting. A monitor serves one client at a time: when another holds it,
  /// the connection is made but no greeting comes.
  std::chrono::milliseconds greeting_timeout{3000};
  std::chrono::milliseconds reply_timeout{10000};
  /// A message longer than this ends the session (a description of a large machine is under 1 MiB).
  std::size_t message_bytes_max = std::size_t{64} << 20;
  /// Opens the id of every command. QEMU gives the reply to a command of a client that has died to
  /// the client that comes next: with a prefix of one's own it is told apart, and dropped.
  /// connect() chooses one.
  std::string id_prefix;
  EventHandler on_event;
};

class Session {
 public:
  /// Connects to a monitor's unix socket. Errors name the path and the remedy: Errc::not_found (no
  /// such socket), Errc::permission, Errc::in_use (no greeting: another client holds the monitor),
  /// Errc::protocol (not a QMP monitor), Errc::closed.
  [[nodiscard]] static Result<std::unique_ptr<Session>> connect(const std::string& path,
                                                                SessionOptions options = {});
  /// The same over a connected stream socket; `name` stands in messages.
  [[nodiscard]] static Result<std::unique_ptr<Session>> adopt(UniqueFd fd, std::string name,
                                                              SessionOptions options = {});
  /// Over a socket whose greeting was read and whose capabilities were negotiated (oob where
  /// offered) by somebody else; it stands between two messages and is non-blocking.
  [[nodiscard]] static std::unique_ptr<Session> resume(UniqueFd fd, std::string name,
                                                       const Greeting& greeting,
                                                       SessionOptions options = {});
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  /// Runs a command and waits for its reply. An error reply of QEMU's becomes
  /// Errc::unsupported for CommandNotFound, else Errc::invalid_argument, with QEMU's description.
  [[nodiscard]] Result<Json> execute(const std::string& command);
  [[nodiscard]] Result<Json> execute(const std::string& command, const Json& arguments);
  [[nodiscard]] Result<Json> execute(const std::string& command, const Json& arguments,
                                     std::chrono::milliseconds timeout);
  /// Out of band: answered even while QEMU's main loop is stuck. Errc::unsupported without oob.
  [[nodiscard]] Result<Json> execute_oob(const std::string& command, const Json& arguments);
  /// A command with a descriptor attached (getfd, add-fd).
  [[nodiscard]] Result<Json> execute_with_fd(const std::string& command, const Json& arguments,
                                             int fd);

  [[nodiscard]] const QemuVersion& version() const;
  [[nodiscard]] bool has_oob() const;
  /// The process at the other end (SO_PEERCRED).
  [[nodiscard]] Result<int> peer_pid() const;
  /// Passes the connection on over a unix socket, with one byte: whoever has it can shut it down,
  /// also when we are past doing so.
  [[nodiscard]] Status pass_connection(int unix_fd, io::Deadline deadline) const;
  /// nullopt while the session lives, else why it ended.
  [[nodiscard]] std::optional<Error> closed() const;

 private:
  struct State;
  explicit Session(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace vmshadow::qmp
