#include "store/tier_choice.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "io/file.h"

namespace vmshadow::store {

std::uint64_t tier_room(const SegmentCatalog& catalog, TierIndex tier) {
  const TierDirectory& directory = catalog.directory().tiers()[tier];
  // What cannot be asked is found out by writing.
  const std::uint64_t free = io::free_bytes(directory.path).value_or(UINT64_MAX);
  if (directory.capacity_bytes == 0) return free;
  const std::uint64_t used = catalog.tier_bytes(tier);
  const std::uint64_t left = directory.capacity_bytes > used ? directory.capacity_bytes - used : 0;
  return std::min(free, left);
}

std::uint64_t tier_size(const SegmentCatalog& catalog, TierIndex tier) {
  const TierDirectory& directory = catalog.directory().tiers()[tier];
  if (directory.capacity_bytes != 0) return directory.capacity_bytes;
  return io::file_system_bytes(directory.path).value_or(UINT64_MAX);
}

std::optional<TierIndex> choose_tier_of(const SegmentCatalog& catalog, TierKind kind,
                                        std::uint64_t bytes) {
  const auto& tiers = catalog.directory().tiers();
  std::optional<TierIndex> best;
  std::uint64_t best_room = 0;
  for (TierIndex i = 0; i < tiers.size(); ++i) {
    if (tiers[i].kind != kind) continue;
    const std::uint64_t room = tier_room(catalog, i);
    if (room >= bytes && (!best || room > best_room)) {
      best = i;
      best_room = room;
    }
  }
  return best;
}

Result<TierIndex> choose_tier(const SegmentCatalog& catalog, TierKind kind, std::uint64_t bytes) {
  const TierKind other = kind == TierKind::ssd ? TierKind::hdd : TierKind::ssd;
  for (const TierKind of : {kind, other}) {
    if (const auto tier = choose_tier_of(catalog, of, bytes)) return *tier;
  }
  std::string names;
  for (const TierDirectory& tier : catalog.directory().tiers()) {
    names += fmt::format("{}'{}'", names.empty() ? "" : ", ", tier.path);
  }
  return fail(Errc::no_space, fmt::format("no room for a segment in {}", names));
}

}  // namespace vmshadow::store
