// Which tier directory a new segment goes to.
#pragma once

#include <cstdint>
#include <optional>

#include <vmshadow/result.h>

#include "store/segment_catalog.h"
#include "store/tier.h"

namespace vmshadow::store {

/// What a tier can still take: within its capacity, and what its file system has free.
[[nodiscard]] std::uint64_t tier_room(const SegmentCatalog& catalog, TierIndex tier);

/// The same if it kept no spare files (spare_segments.h).
[[nodiscard]] std::uint64_t tier_room_without_spares(const SegmentCatalog& catalog, TierIndex tier);

/// What a tier can hold at most: its capacity, or its file system's size.
[[nodiscard]] std::uint64_t tier_size(const SegmentCatalog& catalog, TierIndex tier);
enum class SpareFiles {
  stay,
  go,  ///< their room counts as free
};
/// The directory of this kind with most room; nullopt if none has `bytes`.
[[nodiscard]] std::optional<TierIndex> choose_tier_of(const SegmentCatalog& catalog, TierKind kind,
                                                      std::uint64_t bytes,
                                                      SpareFiles spares = SpareFiles::stay);
/// The directory of this kind with most room, or of the other kind where none has `bytes`.
/// Errc::no_space names the directories if none of either has.
[[nodiscard]] Result<TierIndex> choose_tier(const SegmentCatalog& catalog, TierKind kind,
                                            std::uint64_t bytes,
                                            SpareFiles spares = SpareFiles::stay);

}  // namespace vmshadow::store
