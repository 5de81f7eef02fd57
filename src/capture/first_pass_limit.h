// Makes QEMU's first pass end, whatever the guest writes.
//
// QEMU goes over the dirty pages again and again while the guest runs, until what is left can be
// sent within `downtime-limit`. A guest that dirties them faster than they are sent would never
// be protected, and each pass would be shipped in vain. So from the fifth pass on the limit is
// doubled again and again, with a pass and a moment in between: the one pause at the end of the
// pass grows no longer than it must.
//
// It asks from a thread of its own: at the pass's end QEMU's main loop waits for its sends, and its
// monitor with it, so that whoever reads the stream must not wait for the monitor.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>

#include <vmshadow/result.h>

#include "io/socket.h"
#include "qmp/session.h"

namespace vmshadow::capture {

class FirstPassLimit {
 public:
  static constexpr std::chrono::milliseconds kInitial{50};
  static constexpr std::uint64_t kPassesFree = 4;
  /// What QEMU takes at most.
  static constexpr std::chrono::milliseconds kMost{2'000'000};

  /// QEMU reckons ten times a second what it can send: it goes by a new limit a moment later. On a
  /// host without free processors many passes may begin within that.
  static constexpr std::chrono::milliseconds kRaiseEvery{250};

  /// How the limit rises.
  class Steps {
   public:
    explicit Steps(std::chrono::milliseconds most) : most_(most) {}
    /// The limit to be set, where `passes` are found to have begun; nullopt: the one in force
    /// stays.
    [[nodiscard]] std::optional<std::chrono::milliseconds> look(std::uint64_t passes,
                                                                io::Deadline now);

   private:
    const std::chrono::milliseconds most_;
    std::chrono::milliseconds limit_ = kInitial;
    std::uint64_t passes_ = kPassesFree;  // begun when it was raised last
    io::Deadline raise_at_{};
  };

  struct Options {
    /// The limit is not raised beyond this.
    std::chrono::milliseconds most = kMost;
    /// Called at each look, on the watching thread; an error ends the watch. May be empty.
    std::function<Status()> on_look;
    /// Called with each new limit before it is set. May be empty.
    std::function<void(std::chrono::milliseconds)> on_raise;
  };

  /// Begins to watch. `session` outlives it. The limit in force is kInitial.
  FirstPassLimit(qmp::Session& session, Options options);
  explicit FirstPassLimit(qmp::Session& session) : FirstPassLimit(session, Options{}) {}
  /// Ends with the question it is waiting for, if any: the stream must be read up to its end by
  /// then, or be closed.
  ~FirstPassLimit() = default;
  FirstPassLimit(const FirstPassLimit&) = delete;
  FirstPassLimit& operator=(const FirstPassLimit&) = delete;

  /// No further question, without waiting for the one that is under way: the VM may stand still.
  void stop() { thread_.request_stop(); }

 private:
  void watch(const std::stop_token& stop);

  qmp::Session& session_;
  const Options options_;
  std::mutex mutex_;
  std::condition_variable_any stopped_;
  std::jthread thread_;  // last: it uses all of the above
};

}  // namespace vmshadow::capture
