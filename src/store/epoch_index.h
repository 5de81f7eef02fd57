// One kept epoch as the index knows it: its numbers, where its records are, and what damage it has.
// Immutable once it is in the JournalIndex; dropping or moving epochs makes new ones.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include <vmshadow/shadow_reader.h>
#include <vmshadow/types.h>

#include "format/epoch_records.h"
#include "format/sealed_record.h"
#include "store/damage.h"
#include "store/epoch_tally.h"
#include "store/page_table.h"
#include "store/record_place.h"
#include "store/table_merge.h"

namespace vmshadow::store {

/// Where an epoch's records are; after a merge, also those that came from the epochs before it.
struct EpochPlaces {
  std::vector<RecordPlace> groups;  ///< PageSlot::group indexes these
  std::vector<RecordPlace> zeros;   ///< zero_pages; together they say at least the table's runs
  std::vector<RecordPlace> device;
  std::optional<RecordPlace> machine;  ///< where it has one: a full epoch
  SegmentId home;  ///< the segment of its epoch_end and commit, or of its archived_epoch
  /// Where an archive says of own_damage and base_damage; nullopt: the damaged bytes say it.
  std::optional<RecordPlace> own_loss;
  std::optional<RecordPlace> base_loss;

  /// Files a record of the epoch where EpochTally::add() says.
  void add(const Placing& placing, const RecordPlace& place);
};

struct EpochIndex {
  EpochInfo info;
  /// The epoch that it adds to; nullopt: none, it holds every page by itself (info.full).
  std::optional<Epoch> previous;
  /// Of the full epoch it builds on, or its own; null if that is damaged, or sealed.
  MachinePtr machine;
  /// What its records are sealed with; nullopt: they are not.
  std::optional<format::KeyId> key_id;
  PageTable pages;
  EpochPlaces places;
  std::vector<SegmentUse> uses;  ///< by segment
  /// Costs this epoch alone: its device state, its epoch_end, its commit.
  std::optional<Damage> own_damage;
  /// Costs this epoch and those that build on it: its pages, its machine.
  std::optional<Damage> base_damage;
};
using EpochIndexPtr = std::shared_ptr<const EpochIndex>;

/// Works out `uses`, once the table and the places are final.
void set_uses(EpochIndex& epoch);
[[nodiscard]] bool uses_segment(const EpochIndex& epoch, SegmentId segment);
/// What of all segments it needs.
[[nodiscard]] std::uint64_t live_bytes(const EpochIndex& epoch);
/// It has damage of which no archive tells: nothing that shows it may be given up before one does.
[[nodiscard]] bool has_untold_damage(const EpochIndex& epoch);

/// `kept` once the epochs before it, of its generation, are dropped: the newest state of each page,
/// as of `kept`. What no page needs any more is left out of the places. One that holds every page
/// by itself owes nothing to those before it, nor is it hurt by their damage.
[[nodiscard]] std::shared_ptr<EpochIndex> merge_dropped(
    std::span<const EpochIndexPtr> dropped_rising, const EpochIndex& kept);

/// What is known of an epoch once all its records were taken. `summary` is null if lost.
[[nodiscard]] EpochInfo make_epoch_info(Epoch epoch, Generation generation, const EpochTally& tally,
                                        const format::EpochSummary* summary,
                                        WallTime committed_wall);

}  // namespace vmshadow::store
