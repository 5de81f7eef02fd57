// A monitor that plays a QEMU this machine has not got: it listens on a unix socket, greets with
// the version it is told, and answers each command from the script.
#pragma once

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <array>
#include <chrono>
#include <cstdint>
#include <functional>
#include <mutex>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/unique_fd.h"
#include "io/socket.h"
#include "qmp/message_stream.h"

namespace vmshadow::test {

class ScriptedMonitor {
 public:
  using Json = nlohmann::json;
  /// The whole reply to a command but its id: {"return": …} or {"error": …}. A null: no reply.
  using Script = std::function<Json(const Json& command)>;

  /// Serves one client after the other. `version` is "MAJOR.MINOR.MICRO".
  ScriptedMonitor(const std::string& path, const std::string& version, Script script)
      : script_(std::move(script)), stop_(::eventfd(0, EFD_CLOEXEC)) {
    int major = 0;
    int minor = 0;
    int micro = 0;
    if (std::sscanf(version.c_str(), "%d.%d.%d", &major, &minor, &micro) != 3) {
      throw std::runtime_error("not a version: " + version);
    }
    greeting_ =
        fmt::format(R"({{"QMP": {{"version": {{"qemu": {{"micro": {}, "minor": {}, "major": {}}}, )"
                    R"("package": ""}}, "capabilities": ["oob"]}}}})"
                    "\r\n",
                    micro, minor, major);
    auto listener = io::listen_unix(path);
    if (!listener) throw std::runtime_error(listener.error().message);
    listener_ = *std::move(listener);
    thread_ = std::thread([this] { serve(); });
  }
  ~ScriptedMonitor() {
    const std::uint64_t one = 1;
    [[maybe_unused]] const auto ignored = ::write(stop_.get(), &one, sizeof one);
    thread_.join();
  }
  ScriptedMonitor(const ScriptedMonitor&) = delete;
  ScriptedMonitor& operator=(const ScriptedMonitor&) = delete;

  /// Sends an event to the client that is there, if one is. Safe from any thread, also from the
  /// script: it then comes before the reply.
  void tell(const std::string& event, const Json& data = Json::object()) {
    const auto now = std::chrono::duration_cast<std::chrono::microseconds>(
        std::chrono::system_clock::now().time_since_epoch());
    const Json message = {
        {"event", event},
        {"data", data},
        {"timestamp",
         {{"seconds", now.count() / 1'000'000}, {"microseconds", now.count() % 1'000'000}}}};
    const std::lock_guard lock(say_mutex_);
    if (client_ >= 0) say_locked(client_, message.dump() + "\r\n");
  }
  /// Ends the connection to the client that is there, as QEMU's death would.
  void hang_up() {
    const std::lock_guard lock(say_mutex_);
    if (client_ >= 0) ::shutdown(client_, SHUT_RDWR);
  }

  /// The commands heard so far, by name; those out of band as "oob:NAME".
  [[nodiscard]] std::vector<std::string> heard() const {
    const std::lock_guard lock(mutex_);
    return heard_;
  }

 private:
  void serve() {
    for (;;) {
      auto peer = io::accept_connection(listener_.get(), stop_.get(), io::kNoDeadline);
      if (!peer || !*peer) return;
      set_client((*peer)->get());
      const bool go_on = talk((*peer)->get());
      set_client(-1);
      if (!go_on) return;
    }
  }

  /// False once told to stop.
  bool talk(int fd) {
    qmp::MessageStream stream(std::size_t{1} << 20);
    if (!say(fd, greeting_)) return true;
    for (;;) {
      std::array<pollfd, 2> wait{{{fd, POLLIN, 0}, {stop_.get(), POLLIN, 0}}};
      ::poll(wait.data(), wait.size(), -1);
      if (wait[1].revents != 0) return false;
      std::array<std::byte, 4096> buffer;
      const auto got = io::read_some(fd, buffer, io::deadline_after({}));
      if (!got || *got == 0 || !stream.feed(ByteSpan(buffer.data(), *got))) return true;
      while (auto command = stream.next()) {
        if (!answer(fd, *command)) return true;
      }
    }
  }

  bool answer(int fd, const Json& command) {
    const bool oob = command.contains("exec-oob");
    const std::string name = command.value(oob ? "exec-oob" : "execute", "");
    {
      const std::lock_guard lock(mutex_);
      heard_.push_back(oob ? "oob:" + name : name);
    }
    Json reply = name == "qmp_capabilities" ? Json{{"return", Json::object()}} : script_(command);
    if (reply.is_null()) return true;
    reply["id"] = command["id"];
    return say(fd, reply.dump() + "\r\n");
  }

  void set_client(int fd) {
    const std::lock_guard lock(say_mutex_);
    client_ = fd;
  }
  bool say(int fd, const std::string& text) {
    const std::lock_guard lock(say_mutex_);
    return say_locked(fd, text);
  }
  static bool say_locked(int fd, const std::string& text) {
    return io::write_all(fd, std::as_bytes(std::span(text)),
                         io::deadline_after(std::chrono::seconds(30)))
        .has_value();
  }

  Script script_;
  std::string greeting_;
  UniqueFd stop_;
  UniqueFd listener_;
  mutable std::mutex mutex_;
  std::vector<std::string> heard_;
  std::mutex say_mutex_;  // also: client_ is open while it is held
  int client_ = -1;
  std::thread thread_;  // last: uses all of the above
};

}  // namespace vmshadow::test
