// The server's end of a monitor connection, driven step by step by a test: it says exactly what the
// test tells it to, and shows what the client sent.
#pragma once

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <array>
#include <chrono>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "io/socket.h"
#include "qmp/message_stream.h"
#include "qmp/session.h"

namespace vmshadow::qmp {

inline constexpr std::string_view kGreetingWithOob =
    R"({"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian"}, )"
    R"("capabilities": ["oob"]}})"
    "\r\n";
inline constexpr std::string_view kGreetingWithoutOob =
    R"({"QMP": {"version": {"qemu": {"micro": 1, "minor": 11, "major": 2}, "package": ""}, )"
    R"("capabilities": []}})"
    "\r\n";

class FakeMonitor {
 public:
  FakeMonitor() {
    auto pair = io::socket_pair();
    if (!pair) throw std::runtime_error(pair.error().message);
    fd_ = std::move(pair->first);
    client_ = std::move(pair->second);
  }

  /// The client's end, once.
  [[nodiscard]] UniqueFd take_client() { return std::move(client_); }

  /// False if the client is gone.
  bool send(std::string_view text) {
    return io::write_all(fd_.get(), std::as_bytes(std::span(text)), patience()).has_value();
  }
  /// The next command; a null if the client closed or sent none in time.
  nlohmann::json receive() {
    for (;;) {
      if (auto message = stream_.next()) return *message;
      std::array<std::byte, 4096> buffer;
      const auto got = io::read_some(fd_.get(), buffer, patience());
      if (!got || *got == 0) return nullptr;
      if (!stream_.feed(ByteSpan(buffer.data(), *got))) return nullptr;
    }
  }
  void reply(const nlohmann::json& command,
             const nlohmann::json& result = nlohmann::json::object()) {
    send(nlohmann::json{{"return", result}, {"id", command["id"]}}.dump() + "\r\n");
  }
  /// Greets and accepts qmp_capabilities.
  void shake_hands(std::string_view greeting = kGreetingWithOob) {
    send(greeting);
    const auto command = receive();
    ASSERT_EQ(command["execute"], "qmp_capabilities");
    reply(command);
  }
  void close() { fd_.reset(); }
  [[nodiscard]] int fd() const { return fd_.get(); }

 private:
  static io::Deadline patience() { return io::deadline_after(std::chrono::seconds(30)); }

  UniqueFd fd_;
  UniqueFd client_;
  MessageStream stream_{std::size_t{1} << 20};
};

/// Session::adopt on another thread, so that the test can play the server meanwhile.
inline std::future<Result<std::unique_ptr<Session>>> adopt_async(FakeMonitor& monitor,
                                                                 SessionOptions options = {}) {
  return std::async(std::launch::async,
                    [fd = monitor.take_client(), options = std::move(options)]() mutable {
                      return Session::adopt(std::move(fd), "vm1's monitor", std::move(options));
                    });
}

/// A session with its hands shaken; null (and a test failure) if that did not work.
inline std::unique_ptr<Session> open_session(FakeMonitor& monitor, SessionOptions options = {},
                                             std::string_view greeting = kGreetingWithOob) {
  auto opening = adopt_async(monitor, std::move(options));
  monitor.shake_hands(greeting);
  auto session = opening.get();
  EXPECT_TRUE(session) << (session ? "" : session.error().message);
  return session ? *std::move(session) : nullptr;
}

}  // namespace vmshadow::qmp
