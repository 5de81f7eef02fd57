// Joins what capture says of an epoch (its pause) with what the store says of it (durable, lag),
// and reports: a JSON line per committed epoch, a status line for people, a summary at the end.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <deque>
#include <map>
#include <mutex>
#include <optional>

#include <vmshadow/page_source.h>
#include <vmshadow/types.h>

#include "ship/epoch_shipper.h"

namespace vmshadow::app {

/// How the sidecar tells what it does.
enum class ReportStyle { quiet, terminal, json_lines };

/// Safe from any thread: capture's and the shipper's both report here.
class EpochLedger {
 public:
  /// Lines go to `out` (json_lines: one object a line; terminal: one line rewritten in place).
  EpochLedger(ReportStyle style, std::FILE* out);

  void taken(const EpochStats& stats);
  void committed(const ship::CommittedEpoch& epoch);

  /// To be called about once a second, also while nothing commits: shows the lag as it is now.
  void tick(std::optional<std::chrono::microseconds> lag);
  /// Progress of asking the store what it has, before the first pass.
  void asking_store(const ship::BaseProgress& progress);
  /// Progress of the first pass, for people.
  void first_pass(std::uint64_t pages);

  struct Summary {
    std::uint64_t epochs{};  ///< committed
    std::optional<Epoch> first, last;
    std::uint64_t captured_pages{}, data_pages{}, zero_pages{}, unchanged_pages{};
    std::uint64_t raw_bytes{};      ///< captured pages times the page size
    std::uint64_t shipped_bytes{};  ///< records
    /// Of the newest kSamplesMax epochs, without the full pass; so are the lags below.
    double pause_ms_p50{}, pause_ms_p99{}, pause_ms_max{};
    std::uint64_t pauses{};
    double lag_ms_p50{}, lag_ms_p99{};  ///< peak lags
    double commit_ms_p50{}, commit_ms_p99{};
    double full_pass_ms{}, full_pass_pause_ms{};
  };
  [[nodiscard]] Summary summary() const;
  /// Prints the summary in the ledger's style. `lag` is the lag at the end.
  void print_summary(std::optional<std::chrono::microseconds> lag) const;

  static constexpr std::size_t kSamplesMax = std::size_t{1} << 16;

 private:
  void report(const EpochStats& stats, const ship::CommittedEpoch& epoch);

  const ReportStyle style_;
  std::FILE* const out_;
  mutable std::mutex mutex_;
  std::map<Epoch, EpochStats> taken_;            // not yet committed
  std::map<Epoch, ship::CommittedEpoch> early_;  // committed before capture had its pause
  Summary totals_;
  std::deque<double> pause_ms_, lag_ms_, commit_ms_;
  std::chrono::steady_clock::time_point last_line_{};
};

}  // namespace vmshadow::app
