#include "store/segment_catalog.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/assert.h"
#include "store/damage.h"

namespace vmshadow::store {

SegmentId SegmentCatalog::allocate() {
  const std::lock_guard lock(mutex_);
  newest_ = newest_.next();
  return newest_;
}

SegmentId SegmentCatalog::newest() const {
  const std::lock_guard lock(mutex_);
  return newest_;
}

void SegmentCatalog::reserve(SegmentId id) {
  const std::lock_guard lock(mutex_);
  newest_ = std::max(newest_, id);
}

void SegmentCatalog::add(SegmentId id, const SegmentFacts& facts) {
  const std::lock_guard lock(mutex_);
  newest_ = std::max(newest_, id);
  segments_[id] = facts;
}

void SegmentCatalog::set_bytes(SegmentId id, std::uint64_t bytes, bool sealed) {
  const std::lock_guard lock(mutex_);
  const auto found = segments_.find(id);
  VMSHADOW_ASSERT(found != segments_.end());
  found->second.bytes = bytes;
  found->second.sealed = sealed;
}

void SegmentCatalog::set_file_bytes(SegmentId id, std::uint64_t bytes) {
  const std::lock_guard lock(mutex_);
  const auto found = segments_.find(id);
  VMSHADOW_ASSERT(found != segments_.end());
  found->second.file_bytes = bytes;
}

void SegmentCatalog::set_listed(const std::vector<SegmentId>& ids, bool listed) {
  const std::lock_guard lock(mutex_);
  for (const SegmentId id : ids) {
    const auto found = segments_.find(id);
    VMSHADOW_ASSERT(found != segments_.end());
    found->second.listed = listed;
  }
}

void SegmentCatalog::remove(SegmentId id) {
  const std::lock_guard lock(mutex_);
  segments_.erase(id);
}

std::optional<SegmentFacts> SegmentCatalog::find(SegmentId id) const {
  const std::lock_guard lock(mutex_);
  const auto found = segments_.find(id);
  if (found == segments_.end()) return std::nullopt;
  return found->second;
}

std::map<SegmentId, SegmentFacts> SegmentCatalog::all() const {
  const std::lock_guard lock(mutex_);
  return segments_;
}

std::vector<format::SegmentEntry> SegmentCatalog::entries() const {
  const std::lock_guard lock(mutex_);
  std::vector<format::SegmentEntry> entries;
  entries.reserve(segments_.size());
  for (const auto& [id, facts] : segments_) {
    if (!facts.listed) continue;
    entries.push_back({id, facts.sealed ? facts.bytes : 0, facts.kind});
  }
  return entries;
}

void SegmentCatalog::set_spare_bytes(TierIndex tier, std::uint64_t bytes) {
  const std::lock_guard lock(mutex_);
  spare_bytes_[tier] = bytes;
}

std::uint64_t SegmentCatalog::spare_bytes(TierIndex tier) const {
  const std::lock_guard lock(mutex_);
  const auto found = spare_bytes_.find(tier);
  return found == spare_bytes_.end() ? 0 : found->second;
}

std::uint64_t SegmentCatalog::tier_bytes(TierIndex tier) const {
  const std::lock_guard lock(mutex_);
  const auto spare = spare_bytes_.find(tier);
  std::uint64_t bytes = spare == spare_bytes_.end() ? 0 : spare->second;
  for (const auto& [id, facts] : segments_) {
    if (facts.tier == tier && !facts.missing) bytes += facts.disk_bytes();
  }
  return bytes;
}

std::size_t SegmentCatalog::listed() const {
  const std::lock_guard lock(mutex_);
  return static_cast<std::size_t>(std::count_if(
      segments_.begin(), segments_.end(), [](const auto& entry) { return entry.second.listed; }));
}

Result<std::string> SegmentCatalog::path(SegmentId id) const {
  const std::lock_guard lock(mutex_);
  const auto found = segments_.find(id);
  if (found == segments_.end()) {
    return fail(Errc::not_found, fmt::format("the store '{}' has no segment {} any more",
                                             directory_.path(), segment_file_name(id)));
  }
  return directory_.segment_path(found->second.tier, id);
}

}  // namespace vmshadow::store
