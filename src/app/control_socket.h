// Carries store_control.h's requests over DIR/control.sock.
//
// A directory whose path does not fit a socket's address (107 bytes) is reached through
// /proc/self/fd, so that a store's path may be as long as any.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include <vmshadow/result.h>

#include "app/store_control.h"
#include "base/unique_fd.h"

namespace vmshadow::app {

inline constexpr const char* kControlSocketName = "control.sock";

/// Answers one connection after the other, in a thread of its own.
class ControlServer {
 public:
  /// For a request to arrive whole and its answer to be taken.
  static constexpr std::chrono::seconds kRequestWithin{5};

  /// Call with the store's lock held: a socket that is there is then a dead process's, and is
  /// replaced. `control` outlives the server. Errc::already_exists: something else has the name.
  [[nodiscard]] static Result<std::unique_ptr<ControlServer>> start(
      const std::string& directory, StoreControl& control,
      std::chrono::milliseconds request_within = kRequestWithin);
  /// Ends the thread and removes the socket.
  ~ControlServer();

 private:
  ControlServer(std::string directory, StoreControl& control, UniqueFd listener, UniqueFd wake,
                std::chrono::milliseconds request_within);
  void serve();
  [[nodiscard]] Status serve_connection(int fd);

  const std::string directory_;
  StoreControl& control_;
  const UniqueFd listener_;
  const UniqueFd wake_;
  const std::chrono::milliseconds request_within_;
  std::thread thread_;
};

/// Asks the store that has `directory` open; nullopt if none serves a control socket there. The
/// answer is the store's own, or Errc::timed_out, Errc::closed, Errc::permission.
[[nodiscard]] std::optional<ControlResponse> call_store(
    const std::string& directory, const ControlRequest& request,
    std::chrono::milliseconds answer_within = std::chrono::minutes(1));

}  // namespace vmshadow::app
