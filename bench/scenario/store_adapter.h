// How the benchmarks open a store: the one place that knows its options.
#pragma once

#include <memory>
#include <string>

#include <vmshadow/clock.h>
#include <vmshadow/result.h>

#include "store/store.h"

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

}  // namespace vmshadow::bench
