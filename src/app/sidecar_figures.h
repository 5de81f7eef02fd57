// What a sidecar has done and does, as its metrics show it. Lies in memory that its processes
// share: the worker and the guard write, the metrics process reads, none waits for another, and a
// worker that is killed leaves what it has counted to the next.
//
// Figures that belong together are not read at one instant: a scrape may see an epoch's bytes
// before the epoch.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include <vmshadow/clock.h>
#include <vmshadow/page_source.h>

#include "app/epoch_pacer.h"
#include "base/duration_buckets.h"
#include "capture/capture_kind.h"
#include "capture/guard_counts.h"
#include "ship/epoch_shipper.h"

namespace vmshadow::app {

/// EpochStats' phases, in their order.
struct EpochPhase {
  std::string_view name;
  std::chrono::microseconds EpochStats::*took;
};
inline constexpr std::array<EpochPhase, 6> kEpochPhases = {{{"request", &EpochStats::request},
                                                            {"stop", &EpochStats::stop},
                                                            {"cut", &EpochStats::cut},
                                                            {"ram", &EpochStats::ram},
                                                            {"device", &EpochStats::device},
                                                            {"resume", &EpochStats::resume}}};

struct SidecarFigures {
  using Count = std::atomic<std::uint64_t>;
  using Microseconds = std::atomic<std::int64_t>;

  capture::GuardCounts guard;

  // ---- of all workers so far
  Count epochs{0};          ///< committed
  Count epochs_refused{0};  ///< due, but the VM was not to be stopped just then
  Count epochs_merged{0};   ///< due while those before were on their way: part of the next one
  Count first_passes{0};    ///< committed
  Count data_pages{0}, zero_pages{0}, unchanged_pages{0};
  Count raw_bytes{0}, shipped_bytes{0}, device_bytes{0};
  Count pauses_unknown{0};  ///< epochs whose pause was not seen
  /// Of the epochs whose pause is known, without first passes.
  DurationBuckets pause;
  std::array<DurationBuckets, kEpochPhases.size()> phases;
  /// Of all but first passes.
  DurationBuckets commit, peak_lag, pass;

  // ---- as it is now, or was when it was last seen
  /// The worker (GuardFlags::worker) that takes epochs; 0: none, or it has stopped doing so.
  Count taken_by{0};
  /// The one that has committed an epoch.
  Count committed_by{0};
  /// Of the newest committed epoch's cut, by the clock that goes on (0: none yet) and by the
  /// wall's.
  Microseconds committed_cut_ns{0}, committed_cut_wall_ns{0};
  Count committed_epoch{0};
  Count generation{0};
  std::atomic<int> source{-1};  ///< a CaptureKind; -1: not chosen yet
  Microseconds first_pass_us{0};
  Count dirty_pages{0};  ///< of the newest epoch
  Microseconds interval_us{0};
  Microseconds target_lag_us{0};  ///< 0: none was asked for
  std::atomic<bool> target_lag_held{true};
  Microseconds holds_lag_us{0};  ///< under full passes; 0: not known
  Count queue_bytes{0}, unacknowledged_epochs{0};
  std::atomic<int> acceleration{1};
  std::atomic<double> cpu_pressure_percent{-1};  ///< negative: this kernel does not say

  static_assert(Count::is_always_lock_free && Microseconds::is_always_lock_free &&
                std::atomic<double>::is_always_lock_free);

  /// Store and capture have both told of an epoch. Called by one thread at a time.
  void add(const EpochStats& stats, const ship::CommittedEpoch& epoch, bool first_pass);
  /// An epoch has become durable, by this worker.
  void durable(const ship::CommittedEpoch& epoch, std::uint64_t worker);
  /// A worker lives, takes epochs, and has committed one of its own.
  [[nodiscard]] bool is_protected() const {
    const std::uint64_t worker = guard.workers_started;
    return guard.worker_lives && worker != 0 && taken_by == worker && committed_by == worker;
  }
  void paced(const PaceReport& pace);
};

}  // namespace vmshadow::app
