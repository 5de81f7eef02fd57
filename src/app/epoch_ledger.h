// Joins what capture says of an epoch (its pause) with what the store says of it (durable, lag),
// and reports: a JSON line per committed epoch, a status line for people, a summary at the end.
// What it keeps does not grow with the run.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <map>
#include <mutex>
#include <optional>

#include <vmshadow/page_source.h>
#include <vmshadow/types.h>

#include "app/epoch_pacer.h"
#include "app/sidecar_figures.h"
#include "base/duration_histogram.h"
#include "ship/epoch_shipper.h"

namespace vmshadow::app {

/// How the sidecar tells what it does.
enum class ReportStyle { quiet, terminal, json_lines };

/// Safe from any thread: capture's and the shipper's both report here.
class EpochLedger {
 public:
  /// Lines go to `out` (json_lines: one object a line; terminal: one line rewritten in place), what
  /// they say also to `figures`.
  EpochLedger(ReportStyle style, std::FILE* out, SidecarFigures& figures);

  void taken(const EpochStats& stats);
  void committed(const ship::CommittedEpoch& epoch);
  /// How epochs are paced as from now; says so where it changes whether all that was asked for is
  /// held.
  void paced(const PaceReport& pace);

  /// To be called about once a second, also while nothing commits: shows the lag as it is now.
  void tick(std::optional<std::chrono::microseconds> lag);
  /// Progress of asking the store what it has, before the first pass.
  void asking_store(const ship::BaseProgress& progress);
  /// Progress of the disks' first copy, in bytes; `total` may grow.
  void copying_disks(std::uint64_t done, std::uint64_t total);
  /// Progress of the first pass, for people.
  void first_pass(std::uint64_t pages);

  /// Of all epochs but the full pass; quantiles to within 1 %.
  struct Spread {
    std::uint64_t count{};
    double p50_ms{}, p99_ms{}, max_ms{};
  };
  static constexpr std::size_t kPhases = kEpochPhases.size();

  struct Summary {
    std::uint64_t epochs{};  ///< committed
    std::optional<Epoch> first, last;
    std::uint64_t captured_pages{}, data_pages{}, zero_pages{}, unchanged_pages{};
    std::uint64_t raw_bytes{};           ///< captured pages times the page size
    std::uint64_t shipped_bytes{};       ///< records
    Spread pause;                        ///< of the epochs whose pause is known
    std::array<Spread, kPhases> phases;  ///< of the same epochs
    Spread lag;                          ///< peak lags
    Spread commit;                       ///< cut to durable
    double full_pass_ms{}, full_pass_pause_ms{};
  };
  [[nodiscard]] Summary summary() const;
  /// Prints the summary in the ledger's style. `lag` is the lag at the end.
  void print_summary(std::optional<std::chrono::microseconds> lag) const;

 private:
  void report(const EpochStats& stats, const ship::CommittedEpoch& epoch);
  /// True for the full pass, the first.
  bool count(const EpochStats& stats, const ship::CommittedEpoch& epoch);

  const ReportStyle style_;
  std::FILE* const out_;
  SidecarFigures& figures_;
  mutable std::mutex mutex_;
  std::map<Epoch, EpochStats> taken_;            // not yet committed
  std::map<Epoch, ship::CommittedEpoch> early_;  // committed before capture had its pause
  Summary totals_;
  PaceReport pace_;
  DurationHistogram pause_, lag_, commit_;
  std::array<DurationHistogram, kPhases> phases_;
  std::chrono::steady_clock::time_point last_line_{};
};

}  // namespace vmshadow::app
