// One committed epoch as the index knows it: its numbers, where its records are, and what damage it
// has. Immutable once it is in the JournalIndex.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include <vmshadow/shadow_reader.h>
#include <vmshadow/types.h>

#include "format/epoch_records.h"
#include "store/damage.h"
#include "store/epoch_tally.h"
#include "store/page_table.h"
#include "store/record_place.h"

namespace vmshadow::store {

struct EpochPlaces {
  std::vector<RecordPlace> groups;  ///< PageSlot::group indexes these
  std::vector<RecordPlace> device;
};

struct EpochIndex {
  EpochInfo info;
  MachinePtr machine;  ///< of the full epoch it builds on, or its own; null if that is damaged
  PageTable pages;
  EpochPlaces places;
  /// Costs this epoch alone: its device state, its epoch_end, its commit.
  std::optional<Damage> own_damage;
  /// Costs this epoch and those that build on it: its pages, its machine.
  std::optional<Damage> base_damage;
};
using EpochIndexPtr = std::shared_ptr<const EpochIndex>;

/// What is known of an epoch once all its records were taken. `summary` is null if lost.
[[nodiscard]] EpochInfo make_epoch_info(Epoch epoch, Generation generation, const EpochTally& tally,
                                        const format::EpochSummary* summary,
                                        WallTime committed_wall);

}  // namespace vmshadow::store
