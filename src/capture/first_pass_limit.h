// Makes QEMU's first pass end, whatever the guest writes.
//
// QEMU goes over the dirty pages again and again while the guest runs, until what is left can be
// sent within `downtime-limit`. A guest that dirties them faster than they are sent would never
// be protected, and each pass would be shipped in vain. So from the fifth pass on the limit is
// doubled with every pass: the one pause at the end of the pass grows no longer than it must.
//
// It asks from a thread of its own: at the pass's end QEMU's main loop waits for its sends, and its
// monitor with it, so that whoever reads the stream must not wait for the monitor.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>

#include "qmp/commands.h"
#include "qmp/session.h"

namespace vmshadow::capture {

class FirstPassLimit {
 public:
  static constexpr std::chrono::milliseconds kInitial{50};
  static constexpr std::uint64_t kPassesFree = 4;
  /// What QEMU takes at most.
  static constexpr std::chrono::milliseconds kMost{2'000'000};

  struct Options {
    /// The limit is not raised beyond this.
    std::chrono::milliseconds most = kMost;
    /// Told how the VM is, at each look, on the watching thread. May be empty.
    std::function<void(const qmp::RunState&)> on_run_state;
  };

  /// Begins to watch. `session` outlives it. The limit in force is kInitial.
  FirstPassLimit(qmp::Session& session, Options options);
  explicit FirstPassLimit(qmp::Session& session) : FirstPassLimit(session, Options{}) {}
  /// Ends with the question it is waiting for, if any: the stream must be read up to its end by
  /// then, or be closed.
  ~FirstPassLimit() = default;
  FirstPassLimit(const FirstPassLimit&) = delete;
  FirstPassLimit& operator=(const FirstPassLimit&) = delete;

  /// The limit that goes with so many passes begun.
  [[nodiscard]] static std::chrono::milliseconds after(std::uint64_t passes,
                                                       std::chrono::milliseconds most = kMost);

 private:
  void watch(const std::stop_token& stop);

  qmp::Session& session_;
  const Options options_;
  std::mutex mutex_;
  std::condition_variable_any stopped_;
  std::jthread thread_;  // last: it uses all of the above
};

}  // namespace vmshadow::capture
