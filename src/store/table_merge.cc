#include "store/table_merge.h"

#include <algorithm>
#include <limits>

#include "base/assert.h"

namespace vmshadow::store {

namespace {

/// Groups are numbered in 32 bits: 64 Gi pages, more than an index of this form can have.
void check_group_count(std::size_t count) {
  VMSHADOW_ASSERT(count <= std::numeric_limits<std::uint32_t>::max());
}

/// Whole records of one segment and, of its groups, so many pages.
void add_use(std::vector<SegmentUse>& uses, const RecordPlace& place, std::uint64_t live_pages) {
  // Records of one segment mostly come together: no look-up but for the last.
  if (uses.empty() || uses.back().segment != place.segment()) uses.push_back({place.segment()});
  const std::uint64_t bytes = place.record_bytes();
  uses.back().live_bytes += place.pages() == 0 ? bytes : bytes * live_pages / place.pages();
  uses.back().live_pages += live_pages;
}

}  // namespace

PlacedTable merge_tables(std::span<const TableRef> oldest_to_newest) {
  std::vector<PageTable::MergeSource> sources;
  sources.reserve(oldest_to_newest.size());
  std::size_t groups = 0;
  for (const TableRef& table : oldest_to_newest) {
    sources.push_back({table.pages, static_cast<std::uint32_t>(groups)});
    groups += table.groups.size();
    check_group_count(groups);
  }
  PlacedTable merged{PageTable::merge(sources), {}};
  const std::vector<std::uint32_t> used = merged.pages.drop_unused_groups(groups);
  merged.groups.reserve(used.size());
  std::size_t table = 0;
  for (const std::uint32_t group : used) {
    while (group - sources[table].first_group >= oldest_to_newest[table].groups.size()) ++table;
    merged.groups.push_back(oldest_to_newest[table].groups[group - sources[table].first_group]);
  }
  return merged;
}

PlacedTable relocate_pages(const TableRef& table, std::span<const PageTable::Move> moves,
                           std::span<const RecordPlace> new_groups) {
  const std::size_t old_count = table.groups.size();
  check_group_count(old_count + new_groups.size());
  std::vector<PageTable::Move> behind_old(moves.begin(), moves.end());
  for (PageTable::Move& move : behind_old) {
    VMSHADOW_ASSERT(move.to.group < new_groups.size());
    move.to.group += static_cast<std::uint32_t>(old_count);
  }
  PlacedTable moved{table.pages->relocate(behind_old), {}};
  const auto used = moved.pages.drop_unused_groups(old_count + new_groups.size());
  moved.groups.reserve(used.size());
  for (const std::uint32_t group : used) {
    moved.groups.push_back(group < old_count ? table.groups[group] : new_groups[group - old_count]);
  }
  return moved;
}

std::vector<SegmentUse> segment_use(const TableRef& table, std::span<const RecordPlace> others) {
  std::vector<SegmentUse> uses;
  const std::vector<std::uint8_t> pages = table.pages->pages_by_group(table.groups.size());
  for (std::size_t group = 0; group < pages.size(); ++group) {
    if (pages[group] != 0) add_use(uses, table.groups[group], pages[group]);
  }
  for (const RecordPlace& place : others) add_use(uses, place, 0);
  std::sort(uses.begin(), uses.end(),
            [](const SegmentUse& a, const SegmentUse& b) { return a.segment < b.segment; });
  std::size_t kept = 0;
  for (std::size_t i = 0; i < uses.size(); ++i) {
    if (kept > 0 && uses[kept - 1].segment == uses[i].segment) {
      uses[kept - 1].live_bytes += uses[i].live_bytes;
      uses[kept - 1].live_pages += uses[i].live_pages;
    } else {
      uses[kept++] = uses[i];
    }
  }
  uses.resize(kept);
  return uses;
}

}  // namespace vmshadow::store
