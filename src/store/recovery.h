// Finds out what a store's segments hold, what is damaged, and where the journal's writer stopped.
//
// Sealed segments are read by their skeletons; the last journal segment, and any whose skeleton is
// lost, record by record: each record's checksums, order, chain and counts are then checked, and in
// a journal each batch's mark. Where the last journal segment ends, batch_reader.h says. Any bad
// place before that is damage: it is reported, and costs the epochs that need it, no others.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <vmshadow/result.h>
#include <vmshadow/types.h>

#include "format/journal.h"
#include "format/skeleton.h"
#include "store/damage.h"
#include "store/directory.h"
#include "store/epoch_assembler.h"
#include "store/index_builder.h"
#include "store/journal_index.h"
#include "store/segment_catalog.h"

namespace vmshadow::store {

struct ScanProgress {
  std::uint64_t bytes_done{};
  std::uint64_t bytes_total{};
};
struct ScanHooks {
  std::function<void(const ScanProgress&)> progress;  ///< may be empty; called per few MiB
  /// A further check of each good record (Verifier decodes its pages). If it is set, every byte is
  /// read: skeletons only say what damage costs.
  std::function<Status(const GoodRecord&)> check;
};

/// How often progress is told.
inline constexpr std::uint64_t kScanProgressBytes = std::uint64_t{8} << 20;

struct Recovery {
  std::shared_ptr<JournalIndex> index;
  std::shared_ptr<SegmentCatalog> catalog;  ///< the segments that count
  std::vector<Damage> damage;
  /// Records that are damaged but of which the skeleton says what they hold: they are in the index.
  std::vector<std::pair<VmId, RecordPlace>> damaged_places;
  std::vector<std::string> foreign;                ///< files among the segments that are not ours
  std::vector<StoreDirectory::SegmentFile> aside;  ///< what an earlier start would not unlink
  std::optional<TornTail> torn_tail;
  /// A last segment of which not even the beginning is whole, though it was when it got its name.
  std::optional<SegmentId> torn_segment;
  /// The last journal segment, if it is not sealed: where it ends, and its skeleton so far.
  std::optional<format::JournalPosition> tail;
  format::SkeletonWriter tail_skeleton;
  format::SegmentSalt tail_salt{};
  bool tail_is_damaged{};
  /// A file that does not count any more.
  struct Leftover {
    StoreDirectory::SegmentFile file;
    std::string doubt;  ///< why that is not certain: it must not be lost; empty: it is
  };
  std::vector<Leftover> leftovers;
  std::vector<StoreDirectory::SegmentFile> spares;  ///< files to be written anew
  std::uint64_t unknown_bytes{};                    ///< of damage that may have hidden a grant
  std::uint64_t records{};
  ScanProgress progress;
};

/// Never writes. Damage is in the result; an Error means nothing can be said: Errc::version for
/// another version's segment, Errc::invalid_argument for another store's, Errc::permission,
/// Errc::io.
[[nodiscard]] Result<Recovery> recover(const StoreDirectory& directory,
                                       const ScanHooks& hooks = {});

}  // namespace vmshadow::store
