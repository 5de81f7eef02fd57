// What sessions count of their commits, all together. Safe from any thread.
#pragma once

#include <atomic>
#include <cstdint>

#include "base/duration_buckets.h"

namespace vmshadow::store {

struct CommitFigures {
  /// From an epoch's last record until it is durable.
  DurationBuckets took;
  std::atomic<std::uint64_t> refused{0};  ///< epochs, for whatever reason
};

}  // namespace vmshadow::store
