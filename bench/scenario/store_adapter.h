// The store as the benchmarks see it: the one place that knows which of its abilities this build
// has. What it cannot do yet is said (kWhyNo…) instead of guessed.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include <vmshadow/clock.h>
#include <vmshadow/result.h>

#include "store/store.h"
#include "store/store_stats.h"

namespace vmshadow::bench {

struct StoreSetup {
  std::string directory;
  const Clock* clock = &system_clock();
  bool background_maintenance = true;
  /// In parse_policy()'s form; empty: the store's default.
  std::string retention;
  std::uint64_t segment_bytes = store::LogLimits{}.segment_bytes;
};
[[nodiscard]] Result<std::unique_ptr<store::Store>> open_store(const StoreSetup& setup);

/// True if Store::maintain() and retention exist.
[[nodiscard]] bool store_maintains();
/// One whole maintenance pass; nothing where the store has none.
[[nodiscard]] Status maintain(store::Store& store);
/// nullopt where the store keeps no figures.
[[nodiscard]] std::optional<store::StoreStats> stats_of(const store::Store& store);

inline constexpr const char* kWhyNoMaintenance =
    "this build's store has no retention and no Store::maintain()";
inline constexpr const char* kWhyNoStats = "this build's store has no Store::stats()";

}  // namespace vmshadow::bench
