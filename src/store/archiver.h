// Moves what is still needed out of segments into new archives, and lets the old segments go:
// drains the journal, compacts archives, and moves them between tiers.
//
//   read what is live ─► write archives, durably ─► replace record, durable ─► index ─► remove
//
// A crash before the replace record leaves archives that do not count, or files that were to become
// some, behind it segments that no longer do; either way the next start removes them. What becomes
// of the records epoch_mover.h says. Of an epoch whose damage was known before, a loss record
// tells: it costs who needs it, and no segment stays for its sake.
#pragma once

#include <cstdint>
#include <functional>
#include <set>
#include <vector>

#include <vmshadow/clock.h>
#include <vmshadow/result.h>
#include <vmshadow/types.h>

#include "io/append_file.h"
#include "store/damage.h"
#include "store/journal_index.h"
#include "store/log_writer.h"
#include "store/segment_catalog.h"
#include "store/segment_files.h"
#include "store/spare_segments.h"
#include "store/tier.h"
#include "store/vm_states.h"

namespace vmshadow::store {

struct ArchiveOptions {
  std::uint64_t segment_bytes = std::uint64_t{256} << 20;
  /// Called on the way with the bytes read and written since the last call; may wait. False: stop,
  /// nothing has happened.
  std::function<bool(std::uint64_t bytes)> pace;
  /// What a disk that answers cannot read is given up as lost, as what is damaged is. Else it is an
  /// error: the disk may be back in a minute.
  bool lose_unreadable = false;
};

struct ArchiveReport {
  std::uint64_t removed_bytes{};
  std::uint64_t written_bytes{};
  std::vector<Damage> damage;      ///< found on the way, as far as something was lost by it
  std::uint64_t salvaged_pages{};  ///< that were whole in damaged groups
  std::uint64_t repaired_pages{};  ///< that were not, and came from another copy
  std::uint64_t lost_pages{};      ///< of which there is no other
  /// New segments with sealed groups that could not be opened, for want of the key, to leave out
  /// what is dead of them: moving them again makes them no smaller without it.
  std::set<SegmentId> unopened;
  /// Files of segments that are no longer part of the store but could not be removed.
  std::vector<std::string> left_behind;
};

class Archiver {
 public:
  struct Ground {
    SegmentCatalog& catalog;
    JournalIndex& index;
    const SegmentFiles& segments;
    io::FileSystem& files;  ///< of the calling thread alone
    const Clock& clock;
    LogWriter& log;
    const VmStates& states;
    SpareSegments& spares;
  };
  struct Placement {
    /// Where a page's newest state goes. `kept_versions`: in how many of its VM's kept epochs it
    /// changed.
    std::function<TierKind(unsigned kept_versions)> pages;
    TierKind others{};  ///< all that is not pages: a restore needs it first
  };

  explicit Archiver(Ground ground) : ground_(ground) {}

  /// `sources` are sealed or no longer written; of those that are missing nothing is read. One call
  /// at a time, and no thinning meanwhile. Errc::cancelled (by `pace`), Errc::no_space, Errc::io:
  /// nothing has changed.
  [[nodiscard]] Result<ArchiveReport> run(const std::vector<SegmentId>& sources,
                                          const Placement& placement,
                                          const ArchiveOptions& options);

 private:
  void remove(const std::vector<SegmentId>& segments, ArchiveReport& report);
  Ground ground_;
};

}  // namespace vmshadow::store
