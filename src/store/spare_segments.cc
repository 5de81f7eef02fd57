#include "store/spare_segments.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <set>
#include <utility>

#include "io/file.h"

namespace vmshadow::store {

SpareLimits spare_limits(const LogLimits& log) {
  return {log.spares_max, log.segment_bytes / 2, log.segment_bytes * 2};
}

Status SpareSegments::adopt(const std::vector<StoreDirectory::SegmentFile>& found,
                            io::FileSystem& files) {
  const StoreDirectory& directory = catalog_.directory();
  std::set<TierIndex> tiers;
  for (const StoreDirectory::SegmentFile& file : found) {
    tiers.insert(file.tier);
    catalog_.reserve(file.id);  // names of spares are not used twice either
    const std::string path = directory.spare_path(file.tier, file.id);
    const auto locked = io::lock_for_rewriting(path);
    if (const auto bytes = wanted_bytes(file.tier, locked)) {
      add({{file.id, file.tier, *bytes}, false});
      continue;
    }
    VMSHADOW_TRY(files.remove(path));
  }
  // Whoever gave them up may have been killed before their names were durable.
  for (const TierIndex tier : tiers) {
    VMSHADOW_TRY(files.sync_directory(directory.segments_path(tier)));
    names_are_durable(tier);
  }
  return {};
}

Status SpareSegments::give_up(SegmentId id, TierIndex tier, io::FileSystem& files) {
  const StoreDirectory& directory = catalog_.directory();
  const std::string path = directory.segment_path(tier, id);
  // Held until the file has its new name: whoever opens it meanwhile sees that it is gone.
  const auto locked = io::lock_for_rewriting(path);
  if (const auto bytes = wanted_bytes(tier, locked)) {
    const auto renamed = files.rename(path, directory.spare_path(tier, id));
    if (renamed) {
      add({{id, tier, *bytes}, false});
      return {};
    }
    spdlog::debug("a segment is removed rather than kept: {}", renamed.error().message);
  }
  return files.remove(path);
}

void SpareSegments::names_are_durable(TierIndex tier) {
  const std::lock_guard lock(mutex_);
  for (Entry& entry : entries_) {
    if (entry.spare.tier == tier) entry.takeable = true;
  }
}

std::optional<SpareSegments::Spare> SpareSegments::take(TierIndex tier) {
  const std::lock_guard lock(mutex_);
  const auto found = std::find_if(entries_.begin(), entries_.end(), [&](const Entry& entry) {
    return entry.spare.tier == tier && entry.takeable;
  });
  if (found == entries_.end()) return std::nullopt;
  const Spare spare = found->spare;
  entries_.erase(found);
  ++taken_;
  count_bytes(tier);
  return spare;
}

bool SpareSegments::remove_all(TierIndex tier, io::FileSystem& files) {
  std::vector<Spare> going;
  {
    const std::lock_guard lock(mutex_);
    for (const Entry& entry : entries_) {
      if (entry.spare.tier == tier) going.push_back(entry.spare);
    }
    std::erase_if(entries_, [&](const Entry& entry) { return entry.spare.tier == tier; });
    count_bytes(tier);
  }
  bool freed = false;
  for (const Spare& spare : going) {
    const auto removed = files.remove(catalog_.directory().spare_path(tier, spare.id));
    freed = freed || (removed && spare.bytes > 0);
    if (!removed && removed.error().code != Errc::not_found) {
      spdlog::warn("a spare file stays behind until the store is opened again: {}",
                   removed.error().message);
    }
  }
  return freed;
}

std::size_t SpareSegments::count(TierIndex tier) const {
  const std::lock_guard lock(mutex_);
  return static_cast<std::size_t>(
      std::count_if(entries_.begin(), entries_.end(),
                    [&](const Entry& entry) { return entry.spare.tier == tier; }));
}

std::uint64_t SpareSegments::taken() const {
  const std::lock_guard lock(mutex_);
  return taken_;
}

/// Journal segments go to slow disks only where there are no others.
bool SpareSegments::has_journal(TierIndex tier) const {
  const auto& tiers = catalog_.directory().tiers();
  const auto is_fast = [](const TierDirectory& of) { return of.kind == TierKind::ssd; };
  return is_fast(tiers[tier]) || std::none_of(tiers.begin(), tiers.end(), is_fast);
}

std::optional<std::uint64_t> SpareSegments::wanted_bytes(TierIndex tier,
                                                         const Result<UniqueFd>& locked) const {
  if (!locked || !has_journal(tier) || count(tier) >= limits_.count_max) return std::nullopt;
  const auto bytes = io::file_bytes(locked->get());
  if (!bytes || *bytes < limits_.bytes_min || *bytes > limits_.bytes_max) return std::nullopt;
  return *bytes;
}

void SpareSegments::add(const Entry& entry) {
  const std::lock_guard lock(mutex_);
  entries_.push_back(entry);
  count_bytes(entry.spare.tier);
}

void SpareSegments::set_under_way(TierIndex tier, std::uint64_t bytes) {
  const std::lock_guard lock(mutex_);
  under_way_[tier] = bytes;
  count_bytes(tier);
}

void SpareSegments::count_bytes(TierIndex tier) {
  const auto under_way = under_way_.find(tier);
  std::uint64_t bytes = under_way == under_way_.end() ? 0 : under_way->second;
  for (const Entry& entry : entries_) {
    if (entry.spare.tier == tier) bytes += entry.spare.bytes;
  }
  catalog_.set_spare_bytes(tier, bytes);
}

}  // namespace vmshadow::store
