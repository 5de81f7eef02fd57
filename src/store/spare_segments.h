// Files of segments that were given up, kept to be written anew as the next journal segments: their
// blocks are written already, so a sync of new bytes in them need not wait for the file system to
// record which blocks are (ext4 and XFS commit their own journal for that, each time).
//
//   segment ──given up──► N.spare ──directory synced──► to be taken ──head written, renamed──►
//   segment
//      │                                                    │
//      └── somebody reads it, or there are enough ──► removed ◄── room is short
//
// What a spare holds means nothing: stale records of a segment's earlier life are told from its own
// by their marks (format/journal.h). Whoever reads a segment holds a lock on its file, and a file
// is kept only if nobody does (io::lock_for_rewriting): no file changes under a reader.
//
// Safe from several threads, each with its own FileSystem.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <vector>

#include <vmshadow/result.h>
#include <vmshadow/types.h>

#include "base/unique_fd.h"
#include "io/append_file.h"
#include "store/directory.h"
#include "store/log_limits.h"
#include "store/segment_catalog.h"

namespace vmshadow::store {

struct SpareLimits {
  std::size_t count_max{};  ///< of each tier; 0: every file is removed
  /// A shorter file is not worth it: most of the segment would be new again.
  std::uint64_t bytes_min{};
  /// A longer one would hold room that its segment does not need.
  std::uint64_t bytes_max{};
};
/// Those of a journal with such segments.
[[nodiscard]] SpareLimits spare_limits(const LogLimits& log);

class SpareSegments {
 public:
  /// `catalog` outlives it, and hears what the spares take.
  SpareSegments(SegmentCatalog& catalog, const SpareLimits& limits)
      : catalog_(catalog), limits_(limits) {}

  struct Spare {
    SegmentId id;  ///< the one it was
    TierIndex tier{};
    std::uint64_t bytes{};
  };

  /// What was found when the store was opened. Those beyond the limits are removed.
  [[nodiscard]] Status adopt(const std::vector<StoreDirectory::SegmentFile>& found,
                             io::FileSystem& files);
  /// Lets the file of a segment go that is no longer part of the store and of which nobody will
  /// open a place any more. It becomes a spare, or is removed.
  [[nodiscard]] Status give_up(SegmentId id, TierIndex tier, io::FileSystem& files);
  /// A new file that is durable under its name as a spare's.
  void add_durable(const Spare& spare) { add({spare, true}); }
  /// So much a file takes that is being written to become a spare of the tier; 0: none is.
  void set_under_way(TierIndex tier, std::uint64_t bytes);
  /// The tier's directory is durable as it is now. Only then can what was given up be taken: after
  /// a crash it could have its old name again, and must then be the old segment.
  void names_are_durable(TierIndex tier);
  /// One of the tier to be written anew; it is no spare any more.
  [[nodiscard]] std::optional<Spare> take(TierIndex tier);
  /// Removes all spares of a tier that is short of room, but for one that is being written. True if
  /// that gave it some.
  bool remove_all(TierIndex tier, io::FileSystem& files);

  [[nodiscard]] std::size_t count(TierIndex tier) const;
  /// How many were taken so far.
  [[nodiscard]] std::uint64_t taken() const;

 private:
  struct Entry {
    Spare spare;
    bool takeable{};
  };
  [[nodiscard]] bool has_journal(TierIndex tier) const;
  /// The bytes of a file, if it was locked and is one to keep.
  [[nodiscard]] std::optional<std::uint64_t> wanted_bytes(TierIndex tier,
                                                          const Result<UniqueFd>& locked) const;
  void add(const Entry& entry);
  /// Tells the catalog; with mutex_ held.
  void count_bytes(TierIndex tier);

  SegmentCatalog& catalog_;
  const SpareLimits limits_;
  mutable std::mutex mutex_;
  std::vector<Entry> entries_;
  std::map<TierIndex, std::uint64_t> under_way_;  ///< bytes
  std::uint64_t taken_ = 0;
};

}  // namespace vmshadow::store
