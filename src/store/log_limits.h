// How large the journal's segments and queues get, and what room it leaves.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vmshadow::store {

struct LogLimits {
  std::uint64_t segment_bytes = std::uint64_t{256} << 20;
  /// What may wait for the disk, of one VM and of all. append() blocks beyond either, but never a
  /// VM that has nothing waiting.
  std::size_t vm_queue_bytes = std::size_t{16} << 20;
  std::size_t queue_bytes = std::size_t{64} << 20;
  /// A tier with less room than this gets no new segment.
  std::uint64_t room_bytes_min = std::uint64_t{1} << 20;
  /// So much of a tier is left to upkeep, which needs room to make room: epochs are refused before.
  /// At most an eighth of the tier.
  std::uint64_t reserve_bytes = std::uint64_t{256} << 20;
  /// Files of segments that were given up which each tier keeps for the next segments
  /// (spare_segments.h); 0: none.
  std::size_t spares_max = 8;
};

}  // namespace vmshadow::store
