#include "store/tier_choice.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "io/file.h"

namespace vmshadow::store {

namespace {

std::uint64_t room_of(const SegmentCatalog& catalog, TierIndex tier, std::uint64_t spare_bytes) {
  const TierDirectory& directory = catalog.directory().tiers()[tier];
  // What cannot be asked is found out by writing.
  const std::uint64_t free = io::free_bytes(directory.path).value_or(UINT64_MAX);
  const std::uint64_t on_disk = free > UINT64_MAX - spare_bytes ? UINT64_MAX : free + spare_bytes;
  if (directory.capacity_bytes == 0) return on_disk;
  const std::uint64_t taken = catalog.tier_bytes(tier);
  const std::uint64_t used = taken - std::min(taken, spare_bytes);  // they may have gone just now
  const std::uint64_t left = directory.capacity_bytes > used ? directory.capacity_bytes - used : 0;
  return std::min(on_disk, left);
}

}  // namespace

std::uint64_t tier_room(const SegmentCatalog& catalog, TierIndex tier) {
  return room_of(catalog, tier, 0);
}

std::uint64_t tier_room_without_spares(const SegmentCatalog& catalog, TierIndex tier) {
  return room_of(catalog, tier, catalog.spare_bytes(tier));
}

std::uint64_t tier_size(const SegmentCatalog& catalog, TierIndex tier) {
  const TierDirectory& directory = catalog.directory().tiers()[tier];
  if (directory.capacity_bytes != 0) return directory.capacity_bytes;
  return io::file_system_bytes(directory.path).value_or(UINT64_MAX);
}

std::optional<TierIndex> choose_tier_of(const SegmentCatalog& catalog, TierKind kind,
                                        std::uint64_t bytes, SpareFiles spares) {
  const auto& tiers = catalog.directory().tiers();
  std::optional<TierIndex> best;
  std::uint64_t best_room = 0;
  for (TierIndex i = 0; i < tiers.size(); ++i) {
    if (tiers[i].kind != kind) continue;
    const std::uint64_t room =
        spares == SpareFiles::go ? tier_room_without_spares(catalog, i) : tier_room(catalog, i);
    if (room >= bytes && (!best || room > best_room)) {
      best = i;
      best_room = room;
    }
  }
  return best;
}

Result<TierIndex> choose_tier(const SegmentCatalog& catalog, TierKind kind, std::uint64_t bytes,
                              SpareFiles spares) {
  const TierKind other = kind == TierKind::ssd ? TierKind::hdd : TierKind::ssd;
  for (const TierKind of : {kind, other}) {
    if (const auto tier = choose_tier_of(catalog, of, bytes, spares)) return *tier;
  }
  std::string names;
  for (const TierDirectory& tier : catalog.directory().tiers()) {
    names += fmt::format("{}'{}'", names.empty() ? "" : ", ", tier.path);
  }
  return fail(Errc::no_space, fmt::format("no room for a segment in {}", names));
}

}  // namespace vmshadow::store
