#include "store/epoch_index.h"

#include <algorithm>
#include <map>

#include "base/assert.h"
#include "base/endian.h"

namespace vmshadow::store {
namespace {

std::uint64_t bytes_in_log(const RecordPlace& place) {
  const std::uint64_t bytes = place.record_bytes();
  return bytes + format::alignment_gap(bytes);
}

void append(std::vector<RecordPlace>& to, const std::vector<RecordPlace>& from) {
  to.insert(to.end(), from.begin(), from.end());
}

}  // namespace

void EpochPlaces::add(PlaceList list, format::JournalPosition at,
                      const format::RecordPrefix& prefix, ByteSpan front) {
  const bool is_group = list == PlaceList::group;
  const std::size_t pages = is_group ? load<le16>(front.data()) : 0;
  const auto place = RecordPlace::at(at, prefix.body_bytes, prefix.head.epoch, pages);
  switch (list) {
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
  std::map<SegmentId, std::uint64_t> uses;
  uses[epoch.places.home] += 3 * format::kRecordPrefixBytes;
  const auto pages = epoch.pages.pages_by_group(epoch.places.groups.size());
  for (std::size_t i = 0; i < pages.size(); ++i) {
    const RecordPlace& place = epoch.places.groups[i];
    if (pages[i] == 0) continue;
    uses[place.segment()] += bytes_in_log(place) * pages[i] / std::max(1u, place.pages());
  }
  for (const RecordPlace& place : epoch.places.zeros) uses[place.segment()] += bytes_in_log(place);
  for (const RecordPlace& place : epoch.places.device) uses[place.segment()] += bytes_in_log(place);
  if (const auto& machine = epoch.places.machine) {
    uses[machine->segment()] += bytes_in_log(*machine);
  }
  epoch.uses.clear();
  for (const auto& [segment, bytes] : uses) epoch.uses.push_back({segment, bytes});
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
  merged->own_damage = kept.own_damage;
  merged->base_damage = kept.base_damage;
  merged->places.home = kept.places.home;
  merged->places.device = kept.places.device;
  merged->previous = dropped_rising.front()->previous;

  std::vector<PageTable::MergeSource> sources;
  const auto take = [&](const EpochIndex& from) {
    sources.push_back({&from.pages, static_cast<std::uint32_t>(merged->places.groups.size())});
    append(merged->places.groups, from.places.groups);
    append(merged->places.zeros, from.places.zeros);
  };
  for (const EpochIndexPtr& from : dropped_rising) {
    VMSHADOW_ASSERT(from->info.generation == kept.info.generation);
    take(*from);
    if (from->places.machine) merged->places.machine = from->places.machine;
    if (merged->machine == nullptr) merged->machine = from->machine;
    if (from->info.full) {
      merged->info.full = true;
      merged->previous.reset();
    }
    if (!merged->base_damage) merged->base_damage = from->base_damage;
  }
  take(kept);
  if (kept.places.machine) merged->places.machine = kept.places.machine;
  if (kept.info.full) merged->previous.reset();

  merged->pages = PageTable::merge(sources);
  const auto used = merged->pages.drop_unused_groups(merged->places.groups.size());
  std::vector<RecordPlace> groups;
  groups.reserve(used.size());
  for (const std::uint32_t group : used) groups.push_back(merged->places.groups[group]);
  merged->places.groups = std::move(groups);
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
