// Epochs made ahead of a measurement: records as a sidecar would ship them, so that what is
// measured behind them is not lz4.
//
// Compressing is done once: a pool of groups with realistic pages, from which each epoch takes some
// under keys of its own. So any number of epochs costs a copy and a checksum each.
#pragma once

#include <cstdint>
#include <random>
#include <span>
#include <vector>

#include <vmshadow/epoch_sink.h>
#include <vmshadow/machine.h>

#include "format/epoch_records.h"
#include "support/page_corpus.h"

namespace vmshadow::bench {

/// Groups of format::kGroupPagesMax pages, compressed once.
class GroupPool {
 public:
  enum class Fill {
    realistic,  ///< PageKind::realistic, about 2.4:1
    small,      ///< about 200 bytes a page: many page versions on little disk
  };
  GroupPool(Fill fill, std::size_t groups, std::uint64_t seed);

  [[nodiscard]] std::size_t groups() const { return bodies_.size(); }
  /// A page_group body, with keys to be replaced.
  [[nodiscard]] ByteSpan body(std::size_t group) const { return bodies_[group]; }
  [[nodiscard]] ByteSpan page(std::size_t group, std::size_t slot) const;

 private:
  std::vector<std::byte> pages_;
  std::vector<std::vector<std::byte>> bodies_;
};

/// Which pages an epoch changes, and what to.
struct EpochPlan {
  std::vector<std::uint64_t> pages;   ///< rising; a multiple of kGroupPagesMax
  std::vector<std::uint32_t> groups;  ///< of the pool, one for each kGroupPagesMax pages
};

/// `count` (rounded up to whole groups, at most `of`) distinct pages below `of`, and groups for
/// them. `of` is a multiple of kGroupPagesMax.
[[nodiscard]] EpochPlan plan_uniform(std::size_t count, std::uint64_t of, const GroupPool& pool,
                                     std::mt19937_64& random);
/// All pages below `of`.
[[nodiscard]] EpochPlan plan_all(std::uint64_t of, const GroupPool& pool, std::mt19937_64& random);
/// Groups for pages that are chosen already (rising, whole groups).
[[nodiscard]] EpochPlan plan_pages(std::vector<std::uint64_t> pages, const GroupPool& pool,
                                   std::mt19937_64& random);

/// One epoch's records, back to back.
struct MadeEpoch {
  std::vector<std::byte> bytes;
  std::vector<std::size_t> ends;  ///< of each record; the last is the epoch_end
  std::size_t pages{};
};

struct EpochLabel {
  VmId vm;
  Generation generation;
  Epoch epoch;
};
/// `machine` makes it a full epoch.
[[nodiscard]] MadeEpoch make_epoch(const EpochLabel& label, const MachineDescription* machine,
                                   const EpochPlan& plan, const GroupPool& pool);

/// append() for each record, then commit().
[[nodiscard]] Result<CommitReceipt> ship(EpochSession& session, const MadeEpoch& epoch);

}  // namespace vmshadow::bench
