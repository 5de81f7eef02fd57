// Every pause of a guest, by the STOP and RESUME events of a monitor that is the test's own.
#pragma once

#include <chrono>
#include <mutex>
#include <vector>

#include <vmshadow/clock.h>

#include "qmp/session.h"

namespace vmshadow::test {

/// A stamp of QEMU's on the clock that consoles stamp with, as the two clocks stand now.
[[nodiscard]] inline MonotonicTime monotonic_of(std::chrono::microseconds since_1970) {
  const Clock& clock = system_clock();
  const std::int64_t offset_ns = clock.wall().ns - clock.monotonic().ns;
  return MonotonicTime{std::chrono::nanoseconds(since_1970).count() - offset_ns};
}

/// Safe from any thread: handle() is a session's event handler.
class PauseLog {
 public:
  struct Pause {
    std::chrono::microseconds stop{}, resume{};  ///< QEMU's stamps: time since 1970
  };
  void handle(const qmp::Event& event) {
    const std::lock_guard lock(mutex_);
    if (event.name == "STOP") stop_ = event.stamp;
    if (event.name == "RESUME" && stop_.count() != 0) {
      pauses_.push_back({stop_, event.stamp});
      stop_ = {};
    }
  }
  /// Those that are over, oldest first.
  [[nodiscard]] std::vector<Pause> pauses() const {
    const std::lock_guard lock(mutex_);
    return pauses_;
  }
  /// The guest stands still.
  [[nodiscard]] bool stopped() const {
    const std::lock_guard lock(mutex_);
    return stop_.count() != 0;
  }

 private:
  mutable std::mutex mutex_;
  std::chrono::microseconds stop_{};
  std::vector<Pause> pauses_;
};

}  // namespace vmshadow::test
