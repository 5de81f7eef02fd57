// What a store holds and has done, for status, metrics and benchmarks. Bytes are those of files.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/duration_buckets.h"

namespace vmshadow::store {

struct TierStats {
  std::string name;  ///< "ssd" or "hdd"
  std::vector<std::string> directories;
  std::uint64_t capacity_bytes{};  ///< 0: as much as the file system has
  std::uint64_t stored_bytes{};    ///< segment files
  /// What the tier may still take: of its capacity, and of its file systems. Directories on one
  /// file system each count that one's room.
  std::uint64_t free_bytes{};
  std::uint64_t live_bytes{};  ///< of stored_bytes, records that a kept epoch needs
  /// For who wanted an epoch (restores, exports, sidecars), since the store was opened.
  std::uint64_t read_bytes{};
  std::uint64_t spare_bytes{};  ///< files kept for the next segments; not of `stored_bytes`
};

struct VmStats {
  std::string name;
  std::uint64_t epochs{};       ///< kept
  std::uint64_t live_bytes{};   ///< records that they need
  std::uint64_t quota_bytes{};  ///< 0: none
  /// When the newest of them was cut, in nanoseconds since 1970, by its primary's clock.
  std::int64_t newest_cut_ns{};
};

struct StoreStats {
  std::vector<TierStats> tiers;
  std::vector<VmStats> vms;         ///< by name
  std::uint64_t sessions{};         ///< sidecars that may append just now
  std::uint64_t epochs{};           ///< kept
  std::uint64_t page_versions{};    ///< data pages that the index knows
  std::uint64_t index_bytes{};      ///< memory of the index
  std::uint64_t ingested_bytes{};   ///< records taken from sidecars since the store was opened
  DurationBuckets::Counts commits;  ///< since then, as CommitFigures has them
  std::uint64_t refused_epochs{};
  std::uint64_t queued_bytes{};       ///< records that wait to be written
  std::uint64_t kept_memory_bytes{};  ///< memory kept for the next records
  bool poisoned{};                    ///< a write or sync failed: nothing is taken until a restart
  std::uint64_t written_bytes{};      ///< all bytes written to segments since then
  std::uint64_t moved_bytes{};        ///< of those, by draining, compaction and moves between tiers
  std::uint64_t ahead_bytes{};        ///< of those, to files for segments to come
  std::uint64_t removed_bytes{};      ///< of segments that were let go since then
  std::uint64_t scrubbed_bytes{};     ///< read again and checked since then
  std::uint64_t scrub_rounds{};       ///< how often all of it was
  std::uint64_t salvaged_pages{};     ///< of damaged groups that were rewritten: whole all the same
  std::uint64_t repaired_pages{};     ///< taken from another copy in the store
  std::uint64_t lost_pages{};         ///< of which there was none
  std::uint64_t recycled_segments{};  ///< begun in a spare file, since the store was opened
  std::uint64_t journal_segments{};
  std::uint64_t archive_segments{};
};

}  // namespace vmshadow::store
