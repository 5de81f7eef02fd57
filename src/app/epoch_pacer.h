// Says when the next epoch is due: at a set interval, or as a Cadence finds it. Feeds the cadence
// from the two threads that know something of an epoch, and reports what it does.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>

#include <vmshadow/clock.h>
#include <vmshadow/page_source.h>

#include "capture/cadence.h"
#include "ship/epoch_shipper.h"

namespace vmshadow::app {

/// What the sidecar tells of its pace.
struct PaceReport {
  std::chrono::microseconds interval{};
  /// Of the time since the first epoch behind the full pass; nullopt before the second one.
  std::optional<double> pause_share;
  double dirty_pages_per_s{};
  /// Of a source that reads all RAM for each epoch, from its newest epochs behind the first.
  struct Passes {
    std::chrono::microseconds pass{};  ///< from asking to the last byte
    /// The lag that can be held, one pass right behind the other: a pass, then from its cut until
    /// it is durable.
    std::chrono::microseconds lag{};
  };
  std::optional<Passes> passes;
  /// Below: of a cadence, not of a set interval.
  std::optional<capture::CadenceOptions> asked_for;
  capture::Cadence::Limit limit{};
  std::optional<std::string> cannot_hold;
};

/// Safe from any thread.
class EpochPacer {
 public:
  /// Where there is no `cadence`, epochs come every `interval`.
  EpochPacer(std::chrono::microseconds interval,
             const std::optional<capture::CadenceOptions>& cadence);

  /// From asking for one epoch to asking for the next.
  [[nodiscard]] std::chrono::microseconds interval() const;
  /// An epoch behind the full pass was asked for at `asked`; `cpu`: this process's time so far.
  void taken(const EpochStats& stats, MonotonicTime asked, std::chrono::microseconds cpu);
  /// An epoch is durable. The first is the full pass, whose latency says nothing of the others'.
  void durable(const ship::CommittedEpoch& epoch);
  [[nodiscard]] PaceReport report() const;

 private:
  /// The mean of the newest few durations.
  class Recent {
   public:
    void add(std::chrono::microseconds value);
    [[nodiscard]] std::optional<std::chrono::microseconds> mean() const;

   private:
    static constexpr std::size_t kKept = 8;
    std::array<std::chrono::microseconds, kKept> kept_{};
    std::size_t count_ = 0;
  };

  const std::chrono::microseconds set_interval_;
  const std::optional<capture::CadenceOptions> asked_for_;
  mutable std::mutex mutex_;
  std::optional<capture::Cadence> cadence_;
  bool full_pass_durable_ = false;
  std::optional<MonotonicTime> first_asked_, last_asked_;
  std::chrono::microseconds last_cpu_{};
  std::chrono::microseconds paused_{};  // between first_asked_ and last_asked_
  std::chrono::microseconds last_pause_{};
  std::uint64_t pages_ = 0;    // of the epochs behind the first
  Recent passes_, latencies_;  // of the epochs behind the full pass
};

}  // namespace vmshadow::app
