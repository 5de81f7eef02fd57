// Pauses of one running VM under two secondaries in turn: the discarding floor, and the whole of
// vmshadow's path into a store.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include <vmshadow/result.h>

#include "io/socket.h"

namespace vmshadow::bench {

struct PauseOptions {
  std::string qmp_path;
  io::TcpAddress store;
  std::chrono::milliseconds interval{100};
  unsigned rounds = 10;            ///< each: one session of either secondary
  unsigned epochs_per_round = 20;  ///< beside the first pass and one that is not counted
};

struct PauseSample {
  double pause_ms{};
  std::uint64_t pages{};
};
struct PauseRound {
  std::vector<PauseSample> floor, vmshadow;
};

/// Runs the rounds on the VM behind the monitor; the order of the two alternates.
[[nodiscard]] Result<std::vector<PauseRound>> measure_pauses(const PauseOptions& options);

struct PauseReport {
  unsigned pairs{};           ///< rounds
  std::size_t epochs_each{};  ///< counted epochs per secondary
  double pages_p50{};         ///< dirty pages per epoch, both
  double floor_ms_p50{}, floor_ms_p99{};
  double vmshadow_ms_p50{}, vmshadow_ms_p99{};
  /// Median over the rounds of (vmshadow's median pause / the floor's).
  double ratio_p50{};
  double ratio_p99{};  ///< of all epochs' p99s
};
[[nodiscard]] PauseReport summarize(const std::vector<PauseRound>& rounds);

}  // namespace vmshadow::bench
