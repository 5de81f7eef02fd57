// What the monitor's events say about the VM: when it stopped and resumed, how its migration
// stands. Fed by the monitor's reader thread, read by the capture thread.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <optional>

#include <vmshadow/clock.h>

#include "qmp/session.h"

namespace vmshadow::capture {

class VmEvents {
 public:
  using Stamp = std::chrono::microseconds;  // QEMU's own, since 1970

  /// Takes an event; those of no interest are ignored.
  void handle(const qmp::Event& event);

  /// STOP events seen so far.
  [[nodiscard]] std::uint64_t stops() const;
  /// True between STOP and RESUME.
  [[nodiscard]] bool is_stopped() const;
  /// The newest STOP's stamp; nullopt before the first.
  [[nodiscard]] std::optional<Stamp> last_stop() const;
  /// Migrations that ended so far, however; known only while QEMU's capability `events` is on.
  [[nodiscard]] std::uint64_t migrations_ended() const;
  /// Waits for one more than `ended_before` to end. False if none does in time.
  [[nodiscard]] bool wait_for_migration_end(std::uint64_t ended_before,
                                            std::chrono::milliseconds timeout) const;
  /// When the VM stood still: the newest STOP if it is after `stops_before`, else now. QEMU's stamp
  /// is of the wall clock, which may have been set meanwhile: it never moves a cut into the future.
  struct Cut {
    WallTime wall;
    MonotonicTime monotonic;
  };
  [[nodiscard]] Cut cut_since(std::uint64_t stops_before, const Clock& clock) const;
  /// From now on, until end_marking(), `stopped_since_ns` (which outlives that) says since when the
  /// VM stands still by these events, by `clock`, 0 while it runs: for the guard. At once: whatever
  /// holds the capture thread does not hold this.
  void begin_marking(std::atomic<std::int64_t>& stopped_since_ns, const Clock& clock);
  /// So long a stop is not to be counted while QEMU still sends: it is marked so much later.
  void allow_sending(std::chrono::milliseconds time);
  /// As STOP and RESUME, by one who knows it without them. Stopped: QEMU has sent its RAM; what it
  /// was allowed for that ends here.
  void mark_stopped();
  void mark_resumed();
  void end_marking();

  /// Waits for the RESUME that ends the first stop after `stops_before`; returns STOP → RESUME.
  /// nullopt if it does not come in time.
  [[nodiscard]] std::optional<std::chrono::microseconds> wait_for_pause(
      std::uint64_t stops_before, std::chrono::milliseconds timeout) const;

 private:
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  std::uint64_t stops_ = 0;
  Stamp last_stop_{};
  Stamp last_resume_{};
  bool stopped_ = false;
  std::uint64_t migrations_ended_ = 0;
  std::atomic<std::int64_t>* mark_ = nullptr;  // null: nothing is to be marked
  const Clock* clock_ = nullptr;
  std::chrono::milliseconds allowed_{};
};

}  // namespace vmshadow::capture
