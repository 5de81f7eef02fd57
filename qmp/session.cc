// See session.h. The pieces: MessageStream cuts the bytes, CallTable keeps who waits for what, and
// State joins them with the socket. Locks: CallTable's own, `write_mutex` (who may write), and
// `greeting_mutex`; none is held while another is taken, none during the handler.
#include "qmp/session.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <condition_variable>
#include <mutex>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "base/assert.h"
#include "io/socket.h"
#include "qmp/call_table.h"
#include "qmp/greeting.h"
#include "qmp/json_fields.h"
#include "qmp/message_stream.h"

namespace vmshadow::qmp {
namespace {

constexpr std::size_t kReadBytes = 64 * 1024;
/// Keeps sums of time points from overflowing.
constexpr std::chrono::milliseconds kTimeoutMax = std::chrono::hours{24 * 365};

io::Deadline deadline_in(std::chrono::milliseconds timeout) {
  return io::deadline_after(std::clamp(timeout, std::chrono::milliseconds{0}, kTimeoutMax));
}

/// The stamp of an event; nullopt if it has none within reason.
std::optional<std::chrono::microseconds> read_stamp(const Json& message) {
  constexpr std::int64_t kSecondsMax = 1'000'000'000'000;
  const Json* timestamp = member(message, "timestamp");
  if (timestamp == nullptr) return std::nullopt;
  const auto seconds = integer_member(*timestamp, "seconds");
  const auto micros = integer_member(*timestamp, "microseconds");
  // QEMU says -1 and -1 when it could not read the clock.
  if (!seconds || *seconds < -1 || *seconds > kSecondsMax) return std::nullopt;
  if (!micros || *micros < -1 || *micros > 999'999) return std::nullopt;
  return std::chrono::seconds{*seconds} + std::chrono::microseconds{*micros};
}

/// A command as JSON, without its id and its closing brace: those are known once it has a slot.
/// Errc::invalid_argument if an argument cannot be written as JSON.
Result<std::string> command_body(const std::string& command, const Json& arguments, Lane lane) {
  Json message = Json::object();
  message[lane == Lane::in_band ? "execute" : "exec-oob"] = command;
  if (!arguments.empty()) message["arguments"] = arguments;
  try {
    std::string text = message.dump(-1, ' ', true);
    text.pop_back();
    return text;
  } catch (const Json::exception&) {
    return fail(Errc::invalid_argument,
                fmt::format("an argument of '{}' is not UTF-8 text", command));
  }
}

/// A reply message as its result.
Result<Json> reply_result(const std::string& what, Json reply) {
  if (const auto found = reply.find("return"); found != reply.end()) return std::move(*found);
  const Json& error = reply["error"];
  const std::string* error_class = string_member(error, "class");
  const std::string* description = string_member(error, "desc");
  const bool unknown = error_class != nullptr && *error_class == "CommandNotFound";
  return fail(unknown ? Errc::unsupported : Errc::invalid_argument,
              fmt::format("{}: QEMU refused: {}", what,
                          description != nullptr ? printable(*description) : "it gave no reason"));
}

Error connect_error(Error error, const std::string& path) {
  switch (error.code) {
    case Errc::not_found:
      error.message += ": start the VM's QEMU with -qmp unix:PATH,server=on,wait=off";
      break;
    case Errc::invalid_argument:
      error.message += ": give the path of a -qmp unix:PATH,server=on,wait=off socket";
      break;
    case Errc::permission:
      error.message += ": run as the user that QEMU runs as, or as root";
      break;
    case Errc::closed:
      error.message += ": no QEMU listens there any more; start the VM";
      break;
    case Errc::timed_out:
      return Error{Errc::in_use, fmt::format("{}: another client holds the monitor and more are "
                                             "waiting; end them or add a second -qmp monitor",
                                             path)};
    default:
      break;
  }
  return error;
}

}  // namespace

std::string QemuVersion::text() const { return fmt::format("{}.{}.{}", major, minor, micro); }

struct Session::State {
  std::string name;
  SessionOptions options;
  UniqueFd fd;
  QemuVersion version;  // set before the session is handed out
  bool oob = false;     // the same
  CallTable calls;

  std::mutex greeting_mutex;  // the reader writes; it alone may read without the lock
  std::condition_variable greeting_came;
  std::optional<Greeting> greeting;
  bool greeting_begun = false;

  std::mutex write_mutex;
  std::condition_variable write_done;
  bool writing = false;

  std::thread reader;

  [[nodiscard]] Error error(Errc code, std::string_view what) const {
    return Error{code, fmt::format("{}: {}", name, what)};
  }
  [[nodiscard]] Error connection_lost() const {
    return error(Errc::closed, "QEMU closed the monitor's connection: it has ended, or is ending");
  }

  [[nodiscard]] Error not_qmp(std::string_view why) const {
    return error(Errc::protocol,
                 fmt::format("not a QMP monitor ({}); give the path of a -qmp socket, one with "
                             "mode=control",
                             why));
  }

  void end(Error reason);
  void read_messages();
  [[nodiscard]] Status take_message(Json message);
  [[nodiscard]] Status take_event(const Json& message, const std::string& event_name);
  [[nodiscard]] Status take_reply(Json message);
  void start_reader();
  [[nodiscard]] Status shake_hands();
  [[nodiscard]] Status await_greeting();
  [[nodiscard]] Status write(const std::string& text, int passed_fd, io::Deadline deadline);
  [[nodiscard]] Result<Json> call(const std::string& command, const Json& arguments, CallKind kind,
                                  int passed_fd, std::chrono::milliseconds timeout);
};

/// Ends the session for everybody: callers get `reason`, the reader its end of stream.
void Session::State::end(Error reason) {
  calls.end(std::move(reason));
  ::shutdown(fd.get(), SHUT_RDWR);
  // Taking the lock orders this after the check of whoever is about to wait.
  { const std::lock_guard lock(greeting_mutex); }
  greeting_came.notify_all();
}

void Session::State::read_messages() {
  MessageStream stream(options.message_bytes_max);
  std::vector<std::byte> buffer(kReadBytes);
  for (;;) {
    const auto got = io::read_some(fd.get(), buffer, io::kNoDeadline);
    if (!got && got.error().code != Errc::closed) {
      return end(error(got.error().code, got.error().message));
    }
    if (!got || *got == 0) return end(connection_lost());
    const auto fed = stream.feed(ByteSpan(buffer.data(), *got));
    while (auto message = stream.next()) {
      if (auto taken = take_message(std::move(*message)); !taken) return end(taken.error());
    }
    if (!fed && greeting) {
      return end(
          error(Errc::protocol, "QEMU broke the monitor's protocol: " + fed.error().message));
    }
    if (!fed) return end(not_qmp(fed.error().message));
    const std::lock_guard lock(greeting_mutex);
    greeting_begun = stream.unfinished_bytes() > 0;
  }
}

Status Session::State::take_message(Json message) {
  if (!greeting) {
    auto read = read_greeting(message);
    if (!read && is_of_client_before(message)) return {};
    if (!read) return fail(not_qmp("its first message is not the greeting"));
    const std::lock_guard lock(greeting_mutex);
    greeting = std::move(read);
    greeting_came.notify_all();
    return {};
  }
  if (const auto* event_name = string_member(message, "event")) {
    return take_event(message, *event_name);
  }
  return take_reply(std::move(message));
}

Status Session::State::take_event(const Json& message, const std::string& event_name) {
  static const Json no_data = Json::object();
  const auto stamp = read_stamp(message);
  const Json* data = member(message, "data");
  if (!stamp || (data != nullptr && !data->is_object())) {
    return fail(error(Errc::protocol,
                      fmt::format("QEMU sent a malformed event '{}'", excerpt(event_name))));
  }
  if (options.on_event) {
    options.on_event(Event{event_name, data != nullptr ? *data : no_data, *stamp});
  }
  return {};
}

Status Session::State::take_reply(Json message) {
  const Json* refusal = member(message, "error");
  if (refusal == nullptr && member(message, "return") == nullptr) {
    return fail(error(Errc::protocol, "QEMU sent a message that is no reply and no event"));
  }
  const std::string* id_text = string_member(message, "id");
  if (id_text == nullptr) {
    // QEMU answers so when it could not read a command, and does not say which.
    const std::string* description = refusal == nullptr ? nullptr : string_member(*refusal, "desc");
    return fail(error(Errc::protocol,
                      fmt::format("QEMU sent a reply without an id ({})",
                                  description != nullptr ? excerpt(*description) : "no reason")));
  }
  if (!id_text->starts_with(options.id_prefix)) return {};  // to the client before us
  CallId id = 0;
  const char* last = id_text->data() + id_text->size();
  const auto [end, failed] = std::from_chars(id_text->data() + options.id_prefix.size(), last, id);
  const std::string shown = excerpt(*id_text);
  if (failed != std::errc{} || end != last || !calls.complete(id, std::move(message))) {
    return fail(
        error(Errc::protocol, fmt::format("QEMU answered '{}', which was not asked", shown)));
  }
  return {};
}

void Session::State::start_reader() {
  reader = std::thread([this] { read_messages(); });
}

Status Session::State::await_greeting() {
  std::unique_lock lock(greeting_mutex);
  greeting_came.wait_until(lock, deadline_in(options.greeting_timeout),
                           [&] { return greeting || calls.ended(); });
  if (greeting) {
    version = greeting->version;
    return {};
  }
  if (auto reason = calls.ended()) return fail(*std::move(reason));
  if (greeting_begun) return fail(not_qmp("its greeting broke off"));
  return fail(error(
      Errc::in_use,
      fmt::format("no greeting within {} ms: another client holds the monitor, or QEMU is stopped; "
                  "end that client or give QEMU another -qmp monitor",
                  options.greeting_timeout.count())));
}

Status Session::State::shake_hands() {
  VMSHADOW_TRY(await_greeting());
  Json arguments = Json::object();
  const bool offers_oob = greeting->offers_oob;  // never changes once it came
  if (offers_oob) arguments["enable"] = Json::array({"oob"});
  const auto accepted = call("qmp_capabilities", arguments, CallKind{}, -1, options.reply_timeout);
  if (!accepted) return fail(accepted.error());
  oob = offers_oob;
  return {};
}

/// Writes a whole command. Waits for other writers; a command that was sent in part only ends the
/// session.
Status Session::State::write(const std::string& text, int passed_fd, io::Deadline deadline) {
  std::unique_lock lock(write_mutex);
  if (!write_done.wait_until(lock, deadline, [&] { return !writing; })) {
    return fail(error(Errc::timed_out, "QEMU does not read its monitor"));
  }
  writing = true;
  lock.unlock();
  const ByteSpan bytes = std::as_bytes(std::span(text));
  auto written = passed_fd < 0 ? io::write_all(fd.get(), bytes, deadline)
                               : io::write_with_fd(fd.get(), bytes, passed_fd, deadline);
  if (!written) {
    const Errc code = written.error().code;
    end(code == Errc::closed      ? connection_lost()
        : code == Errc::timed_out ? error(code, "QEMU does not read its monitor")
                                  : error(code, written.error().message));
  }
  lock.lock();
  writing = false;
  lock.unlock();
  write_done.notify_one();
  return {};
}

Result<Json> Session::State::call(const std::string& command, const Json& arguments, CallKind kind,
                                  int passed_fd, std::chrono::milliseconds timeout) {
  // A handler that waited for a reply would wait for itself.
  VMSHADOW_ASSERT(std::this_thread::get_id() != reader.get_id());
  const io::Deadline deadline = deadline_in(timeout);
  const std::string what = fmt::format("{}: '{}'", name, command);
  VMSHADOW_ASSIGN(const std::string body, command_body(command, arguments, kind.lane));
  VMSHADOW_ASSIGN(const CallId id, calls.begin(kind, what, deadline));
  // Failing to write ends the session or leaves the command unsent; either way wait() tells.
  if (auto written = write(fmt::format("{},\"id\":\"{}{}\"}}\n", body, options.id_prefix, id),
                           passed_fd, deadline);
      !written) {
    calls.withdraw(id);
    return fail(std::move(written).error());
  }
  VMSHADOW_ASSIGN(Json reply, calls.wait(id, what, deadline));
  return reply_result(what, std::move(reply));
}

Session::Session(std::unique_ptr<State> state) : state_(std::move(state)) {}

Session::~Session() {
  State& state = *state_;
  VMSHADOW_ASSERT(std::this_thread::get_id() != state.reader.get_id());
  state.end(state.error(Errc::cancelled, "the session is being closed"));
  state.reader.join();
}

Result<std::unique_ptr<Session>> Session::connect(const std::string& path, SessionOptions options) {
  if (options.id_prefix.empty()) {
    static std::atomic<unsigned> sessions{0};
    options.id_prefix = fmt::format("{}.{}-", ::getpid(), ++sessions);
  }
  auto fd = io::connect_unix(path, deadline_in(options.greeting_timeout));
  if (!fd) return fail(connect_error(std::move(fd).error(), path));
  return adopt(*std::move(fd), path, std::move(options));
}

Result<std::unique_ptr<Session>> Session::adopt(UniqueFd fd, std::string name,
                                                SessionOptions options) {
  // The deadlines need it; our own sockets have it already.
  const int flags = ::fcntl(fd.get(), F_GETFL);
  if (flags < 0 || ::fcntl(fd.get(), F_SETFL, flags | O_NONBLOCK) != 0) {
    return fail_errno(errno, name);
  }
  auto state = std::make_unique<State>();
  state->name = std::move(name);
  state->options = std::move(options);
  state->fd = std::move(fd);
  State* const shared = state.get();
  std::unique_ptr<Session> session(new Session(std::move(state)));
  shared->start_reader();
  VMSHADOW_TRY(shared->shake_hands());
  return session;
}

std::unique_ptr<Session> Session::resume(UniqueFd fd, std::string name, const Greeting& greeting,
                                         SessionOptions options) {
  auto state = std::make_unique<State>();
  state->name = std::move(name);
  state->options = std::move(options);
  state->fd = std::move(fd);
  state->greeting = greeting;
  state->version = greeting.version;
  state->oob = greeting.offers_oob;
  State* const shared = state.get();
  std::unique_ptr<Session> session(new Session(std::move(state)));
  shared->start_reader();
  return session;
}

Result<Json> Session::execute(const std::string& command) {
  return execute(command, Json::object(), state_->options.reply_timeout);
}

Result<Json> Session::execute(const std::string& command, const Json& arguments) {
  return execute(command, arguments, state_->options.reply_timeout);
}

Result<Json> Session::execute(const std::string& command, const Json& arguments,
                              std::chrono::milliseconds timeout) {
  return state_->call(command, arguments, CallKind{}, -1, timeout);
}

Result<Json> Session::execute_oob(const std::string& command, const Json& arguments) {
  if (!state_->oob) {
    return fail(state_->error(Errc::unsupported,
                              fmt::format("'{}': this monitor takes no commands out of band; use a "
                                          "-qmp unix: monitor of QEMU 3.0 or newer",
                                          command)));
  }
  return state_->call(command, arguments, CallKind{Lane::out_of_band, false}, -1,
                      state_->options.reply_timeout);
}

Result<Json> Session::execute_with_fd(const std::string& command, const Json& arguments, int fd) {
  VMSHADOW_ASSERT(fd >= 0);
  return state_->call(command, arguments, CallKind{Lane::in_band, true}, fd,
                      state_->options.reply_timeout);
}

const QemuVersion& Session::version() const { return state_->version; }
bool Session::has_oob() const { return state_->oob; }
Result<int> Session::peer_pid() const { return io::peer_pid(state_->fd.get()); }
Status Session::pass_connection(int unix_fd, io::Deadline deadline) const {
  const std::byte byte{};
  return io::write_with_fd(unix_fd, {&byte, 1}, state_->fd.get(), deadline);
}
std::optional<Error> Session::closed() const { return state_->calls.ended(); }

}  // namespace vmshadow::qmp
