// A monitor connection held ready for an emergency: greeted, capabilities negotiated (out of band
// where offered), so that a command goes out at once, and an out-of-band one even while QEMU's main
// loop is stuck. It has no thread, so its holder may fork, and draining it allocates nothing.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include <vmshadow/result.h>

#include "base/unique_fd.h"
#include "qmp/greeting.h"
#include "qmp/session.h"

namespace vmshadow::qmp {

class StandbyMonitor {
 public:
  /// Connects and shakes hands within `patience`. Errors as Session::connect()'s.
  [[nodiscard]] static Result<StandbyMonitor> open(const std::string& path,
                                                   std::chrono::milliseconds patience);

  /// Throws away what QEMU has said meanwhile (events), so that it need not keep it: to be called
  /// now and then. False once the connection is lost.
  [[nodiscard]] bool drain();
  /// Makes a session of it; nothing is left here. Errc::closed if it was lost.
  [[nodiscard]] Result<std::unique_ptr<Session>> wake(SessionOptions options) &&;

 private:
  StandbyMonitor(UniqueFd fd, std::string path) : fd_(std::move(fd)), path_(std::move(path)) {}
  [[nodiscard]] Status shake_hands(std::chrono::milliseconds patience);

  UniqueFd fd_;
  std::string path_;
  Greeting greeting_;
  // QEMU ends each message with a line feed and writes none inside: so a drained connection stands
  // between two messages if that was the last byte.
  bool between_messages_ = true;
};

}  // namespace vmshadow::qmp
