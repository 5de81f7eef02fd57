#include "store/epoch_index.h"

#include <algorithm>

#include "base/assert.h"
#include "format/store_state.h"

namespace vmshadow::store {
namespace {

/// Of the record that says that an epoch is there: it is needed as long as the epoch is.
constexpr std::uint64_t kHomeBytes =
    format::kRecordPrefixBytes + sizeof(format::ArchivedEpochBytes);

void append(std::vector<RecordPlace>& to, const std::vector<RecordPlace>& from) {
  to.insert(to.end(), from.begin(), from.end());
}

}  // namespace

void EpochPlaces::add(const Placing& placing, const RecordPlace& place) {
  switch (placing.list) {
    case PlaceList::none:
      return;
    case PlaceList::group:
      groups.push_back(place);
      return;
    case PlaceList::zeros:
      zeros.push_back(place);
      return;
    case PlaceList::device:
      device.push_back(place);
      return;
    case PlaceList::machine:
      machine = place;
      return;
  }
}

void set_uses(EpochIndex& epoch) {
  std::vector<RecordPlace> others = epoch.places.zeros;
  append(others, epoch.places.device);
  for (const auto& place : {epoch.places.machine, epoch.places.own_loss, epoch.places.base_loss}) {
    if (place) others.push_back(*place);
  }
  epoch.uses = segment_use({&epoch.pages, epoch.places.groups}, others);
  const auto at = std::lower_bound(
      epoch.uses.begin(), epoch.uses.end(), epoch.places.home,
      [](const SegmentUse& use, SegmentId segment) { return use.segment < segment; });
  if (at != epoch.uses.end() && at->segment == epoch.places.home) {
    at->live_bytes += kHomeBytes;
  } else {
    epoch.uses.insert(at, {epoch.places.home, kHomeBytes, 0});
  }
}

std::uint64_t live_bytes(const EpochIndex& epoch) {
  std::uint64_t bytes = 0;
  for (const SegmentUse& use : epoch.uses) bytes += use.live_bytes;
  return bytes;
}

bool has_untold_damage(const EpochIndex& epoch) {
  return (epoch.own_damage && !epoch.places.own_loss) ||
         (epoch.base_damage && !epoch.places.base_loss);
}

bool uses_segment(const EpochIndex& epoch, SegmentId segment) {
  const auto found =
      std::lower_bound(epoch.uses.begin(), epoch.uses.end(), segment,
                       [](const SegmentUse& use, SegmentId id) { return use.segment < id; });
  return found != epoch.uses.end() && found->segment == segment;
}

std::shared_ptr<EpochIndex> merge_dropped(std::span<const EpochIndexPtr> dropped_rising,
                                          const EpochIndex& kept) {
  VMSHADOW_ASSERT(!dropped_rising.empty());
  auto merged = std::make_shared<EpochIndex>();
  merged->info = kept.info;
  merged->machine = kept.machine;
  merged->key_id = kept.key_id;
  merged->own_damage = kept.own_damage;
  merged->base_damage = kept.base_damage;
  merged->places.home = kept.places.home;
  merged->places.own_loss = kept.places.own_loss;
  merged->places.base_loss = kept.places.base_loss;
  merged->places.device = kept.places.device;
  merged->previous = dropped_rising.front()->previous;

  std::vector<TableRef> tables;
  const auto take = [&](const EpochIndex& from) {
    tables.push_back({&from.pages, from.places.groups});
    append(merged->places.zeros, from.places.zeros);
  };
  for (const EpochIndexPtr& from : dropped_rising) {
    VMSHADOW_ASSERT(from->info.generation == kept.info.generation);
    take(*from);
    if (from->places.machine) merged->places.machine = from->places.machine;
    if (merged->machine == nullptr) merged->machine = from->machine;
    if (!merged->key_id) merged->key_id = from->key_id;
    if (from->info.full) {
      merged->info.full = true;
      merged->previous.reset();
    }
    if (!merged->base_damage && !kept.info.full) {
      merged->base_damage = from->base_damage;
      merged->places.base_loss = from->places.base_loss;
    }
  }
  take(kept);
  if (kept.places.machine) merged->places.machine = kept.places.machine;
  if (kept.info.full) merged->previous.reset();

  PlacedTable placed = merge_tables(tables);
  merged->pages = std::move(placed.pages);
  merged->places.groups = std::move(placed.groups);
  if (merged->pages.zero_runs().empty()) merged->places.zeros.clear();
  set_uses(*merged);
  return merged;
}

EpochInfo make_epoch_info(Epoch epoch, Generation generation, const EpochTally& tally,
                          const format::EpochSummary* summary, WallTime committed_wall) {
  EpochInfo info;
  info.epoch = epoch;
  info.generation = generation;
  info.full = tally.full() || (summary != nullptr && summary->full);
  if (summary != nullptr) info.cut_wall = summary->cut_wall;
  info.committed_wall = committed_wall;
  // Of an epoch that is partly archived only the summary knows all.
  const bool whole = !tally.partial() || summary == nullptr;
  info.pages = whole ? tally.stored_pages() : summary->stored_pages;
  info.raw_bytes = info.pages * kPageBytes;
  info.stored_bytes = (whole ? tally.record_bytes() : summary->record_bytes) +
                      2 * format::kRecordPrefixBytes + sizeof(format::EpochEndBytes) +
                      sizeof(format::CommitBytes);
  info.device_bytes = whole ? tally.device_bytes() : summary->device_bytes;
  return info;
}

}  // namespace vmshadow::store
