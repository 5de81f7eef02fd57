// A link that can fail: a TCP proxy between a sidecar and a store that cuts, stalls and delays.
//
// One thread moves all bytes. A stalled proxy reads nothing, so that the senders' socket buffers
// fill as they would behind a dead router. All members are safe from any thread.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include <vmshadow/result.h>

#include "base/unique_fd.h"
#include "io/socket.h"

namespace vmshadow::test {

class TcpProxy {
 public:
  /// Listens on loopback and leads to 127.0.0.1:`target_port`.
  [[nodiscard]] static Result<std::unique_ptr<TcpProxy>> start(std::uint16_t target_port);
  ~TcpProxy();
  TcpProxy(const TcpProxy&) = delete;
  TcpProxy& operator=(const TcpProxy&) = delete;

  [[nodiscard]] std::string address() const { return "127.0.0.1:" + std::to_string(port_); }
  /// Bytes taken from clients so far.
  [[nodiscard]] std::uint64_t bytes_up() const { return bytes_up_; }

  /// Ends every connection of this moment; later ones are served.
  void cut();
  /// The same once `bytes` more have been taken from clients: inside whatever they are part of.
  void cut_after(std::uint64_t bytes) { cut_at_ = bytes_up_ + bytes; }
  void stall() { stalled_ = true; }
  void go_on() { stalled_ = false; }
  /// Every byte, in both directions, arrives this much later.
  void set_delay(std::chrono::milliseconds delay) { delay_ms_ = delay.count(); }

 private:
  struct Connection;
  TcpProxy(UniqueFd listener, std::uint16_t port, std::uint16_t target_port);
  void run();

  static constexpr std::uint64_t kNever = UINT64_MAX;
  UniqueFd listener_;
  const std::uint16_t port_;
  const std::uint16_t target_port_;
  std::atomic<std::uint64_t> bytes_up_{0};
  std::atomic<std::uint64_t> cut_at_{kNever};
  std::atomic<bool> cut_now_{false};
  std::atomic<bool> stalled_{false};
  std::atomic<std::int64_t> delay_ms_{0};
  std::atomic<bool> ending_{false};
  std::thread thread_;
};

}  // namespace vmshadow::test
