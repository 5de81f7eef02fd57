#include "store/page_table.h"

#include <algorithm>

#include "base/assert.h"
#include "store/sorted_merge.h"

namespace vmshadow::store {

namespace {

/// Gives back what growth left over, if it is worth a copy: a table lives long.
template <class T>
void trim(std::vector<T>& list) {
  if (list.capacity() - list.size() > list.size() / 16) list.shrink_to_fit();
}

std::ptrdiff_t offset(std::size_t i) { return static_cast<std::ptrdiff_t>(i); }

}  // namespace

std::size_t PageTable::lower_bound(std::uint64_t page_key, std::size_t from) const {
  return static_cast<std::size_t>(
      std::lower_bound(keys_.begin() + offset(from), keys_.end(), page_key << kSlotBits) -
      keys_.begin());
}

PageTable::Range PageTable::data_range(BlockIndex block) const {
  const std::uint64_t first = page_key({block, PageNumber{0}});
  const std::size_t begin = lower_bound(first);
  return {begin, block.value == 0xffff ? keys_.size() : lower_bound(first + kBlockPages, begin)};
}

PageLookup PageTable::find(format::PageKey key) const {
  return find_within(key, {0, keys_.size()});
}

PageLookup PageTable::find_within(format::PageKey key, Range range) const {
  const std::uint64_t wanted = page_key(key);
  const auto end = keys_.begin() + offset(range.end);
  const auto data = std::lower_bound(keys_.begin() + offset(range.begin), end, wanted << kSlotBits);
  if (data != end && *data >> kSlotBits == wanted) {
    return {PageLookup::Kind::data,
            unpack_slot(*data, groups_[static_cast<std::size_t>(data - keys_.begin())])};
  }
  const auto run = std::upper_bound(zero_runs_.begin(), zero_runs_.end(), wanted,
                                    [](std::uint64_t k, const PageRun& r) { return k < r.first; });
  if (run != zero_runs_.begin() && wanted - std::prev(run)->first < std::prev(run)->count) {
    return {PageLookup::Kind::zero, {}};
  }
  return {};
}

std::vector<format::ZeroRun> PageTable::zero_run_list() const {
  std::vector<format::ZeroRun> runs;
  runs.reserve(zero_runs_.size());
  for (const PageRun& run : zero_runs_) runs.push_back({unpack_key(run.first), run.count});
  return runs;
}

std::uint64_t PageTable::page_count() const {
  std::uint64_t count = keys_.size();
  for (const PageRun& run : zero_runs_) count += run.count;
  return count;
}

std::size_t PageTable::memory_bytes() const {
  return keys_.capacity() * sizeof keys_[0] + groups_.capacity() * sizeof groups_[0] +
         zero_runs_.capacity() * sizeof zero_runs_[0];
}

/// Takes out the data pages that a flattened run covers which is newer than they are, then makes
/// what is left of the runs the table's. `rank_of(group)`: how new a group is.
template <class RankOf>
void PageTable::settle_zeros(std::vector<RankedRun> runs, RankOf&& rank_of) {
  if (!runs.empty()) {
    const std::vector<RankedRun> flat = flatten(std::move(runs));
    std::size_t kept = 0;
    std::size_t next = 0;
    const auto keep = [&](std::size_t begin, std::size_t end) {
      if (kept != begin) {
        std::move(keys_.begin() + offset(begin), keys_.begin() + offset(end),
                  keys_.begin() + offset(kept));
        std::move(groups_.begin() + offset(begin), groups_.begin() + offset(end),
                  groups_.begin() + offset(kept));
      }
      kept += end - begin;
    };
    for (const RankedRun& zeros : flat) {
      const std::size_t covered = lower_bound(zeros.run.first, next);
      keep(next, covered);
      for (next = covered; next < keys_.size() && keys_[next] >> kSlotBits < zeros.run.end();
           ++next) {
        if (rank_of(groups_[next]) >= zeros.rank) keep(next, next + 1);
      }
    }
    keep(next, keys_.size());
    keys_.resize(kept);
    groups_.resize(kept);
    zero_runs_ = subtract(flat, keys_, kSlotBits, kBlockPages);
  }
  trim(keys_);
  trim(groups_);
  trim(zero_runs_);
}

PageTable PageTable::merge(std::span<const MergeSource> oldest_to_newest) {
  std::vector<PageList> lists;
  std::vector<RankedRun> runs;
  lists.reserve(oldest_to_newest.size());
  for (std::uint32_t rank = 0; rank < oldest_to_newest.size(); ++rank) {
    const auto& [table, first_group] = oldest_to_newest[rank];
    VMSHADOW_ASSERT(rank == 0 || first_group >= oldest_to_newest[rank - 1].first_group);
    lists.push_back({table->keys_, table->groups_, first_group});
    for (const PageRun& run : table->zero_runs_) runs.push_back({run, rank});
  }
  PageTable merged;
  merge_newest(lists, kSlotBits, merged.keys_, merged.groups_);
  // Several sources may begin at one group if all but the last have none; then the last is meant.
  merged.settle_zeros(std::move(runs), [&](std::uint32_t group) {
    const auto behind = std::upper_bound(
        oldest_to_newest.begin(), oldest_to_newest.end(), group,
        [](std::uint32_t g, const MergeSource& source) { return g < source.first_group; });
    return static_cast<std::uint32_t>(behind - oldest_to_newest.begin() - 1);
  });
  return merged;
}

PageTable PageTable::relocate(std::span<const Move> moves) const {
  PageTable moved = *this;
  std::size_t at = 0;
  for (const Move& move : moves) {
    const std::uint64_t key = page_key(move.page);
    at = moved.lower_bound(key, at);
    VMSHADOW_ASSERT(at < keys_.size() && keys_[at] >> kSlotBits == key);
    VMSHADOW_ASSERT(move.to.slot < format::kGroupPagesMax);
    moved.keys_[at] = key << kSlotBits | move.to.slot;
    moved.groups_[at] = move.to.group;
    ++at;  // moves rise
  }
  return moved;
}

std::vector<std::uint8_t> PageTable::pages_by_group(std::size_t group_count) const {
  std::vector<std::uint8_t> pages(group_count);
  for (const std::uint32_t group : groups_) ++pages[group];
  return pages;
}

std::vector<std::uint32_t> PageTable::drop_unused_groups(std::size_t group_count) {
  std::vector<std::uint32_t> renumbered(group_count);
  for (const std::uint32_t group : groups_) renumbered[group] = 1;
  std::vector<std::uint32_t> used;
  for (std::uint32_t group = 0; group < group_count; ++group) {
    if (renumbered[group] == 0) continue;
    renumbered[group] = static_cast<std::uint32_t>(used.size());
    used.push_back(group);
  }
  if (used.size() != group_count) {
    for (std::uint32_t& group : groups_) group = renumbered[group];
  }
  return used;
}

void PageTable::Builder::add_group(std::uint32_t group, std::uint32_t sequence,
                                   const format::PageGroup& pages) {
  VMSHADOW_ASSERT(group == group_sequences_.size());
  group_sequences_.push_back(sequence);
  for (std::size_t slot = 0; slot < pages.page_count; ++slot) {
    if ((pages.dead_pages >> slot & 1) != 0) continue;
    const std::uint64_t key = page_key(pages.keys[slot]);
    if (keys_.empty() || keys_.back() >> kSlotBits >= key) stretches_.push_back(keys_.size());
    keys_.push_back(key << kSlotBits | slot);
    groups_.push_back(group);
  }
}

void PageTable::Builder::add_zero_runs(std::uint32_t sequence,
                                       const std::vector<format::ZeroRun>& runs) {
  for (const format::ZeroRun& run : runs) {
    runs_.push_back({{page_key(run.first), run.count}, sequence});
  }
}

PageTable PageTable::Builder::finish() {
  PageTable table;
  if (stretches_.size() <= 1) {
    table.keys_ = std::move(keys_);
    table.groups_ = std::move(groups_);
  } else {
    std::vector<PageList> stretches;
    stretches.reserve(stretches_.size());
    for (std::size_t i = 0; i < stretches_.size(); ++i) {
      const std::size_t begin = stretches_[i];
      const std::size_t end = i + 1 < stretches_.size() ? stretches_[i + 1] : keys_.size();
      stretches.push_back({std::span(keys_).subspan(begin, end - begin),
                           std::span(groups_).subspan(begin, end - begin), 0});
    }
    merge_newest(stretches, kSlotBits, table.keys_, table.groups_);
  }
  table.settle_zeros(std::move(runs_),
                     [&](std::uint32_t group) { return group_sequences_[group]; });
  *this = Builder();
  return table;
}

}  // namespace vmshadow::store
