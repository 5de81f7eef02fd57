#include "store/page_table.h"

#include <algorithm>
#include <queue>

#include "base/assert.h"

namespace vmshadow::store {

std::size_t PageTable::lower_bound(std::uint64_t page_key) const {
  return static_cast<std::size_t>(
      std::lower_bound(keys_.begin(), keys_.end(), page_key << kSlotBits) - keys_.begin());
}

PageLookup PageTable::find(format::PageKey key) const {
  const std::uint64_t wanted = page_key(key);
  const std::size_t i = lower_bound(wanted);
  if (i < keys_.size() && keys_[i] >> kSlotBits == wanted) {
    return {PageLookup::Kind::data, unpack_slot(keys_[i], groups_[i])};
  }
  auto run = std::upper_bound(zero_runs_.begin(), zero_runs_.end(), wanted,
                              [](std::uint64_t k, const Run& r) { return k < r.first; });
  if (run != zero_runs_.begin() && wanted - std::prev(run)->first < std::prev(run)->count) {
    return {PageLookup::Kind::zero, {}};
  }
  return {};
}

std::size_t PageTable::memory_bytes() const {
  return keys_.capacity() * sizeof keys_[0] + groups_.capacity() * sizeof groups_[0] +
         zero_runs_.capacity() * sizeof zero_runs_[0];
}

void PageTable::Builder::add_group(std::uint32_t group, std::uint32_t sequence,
                                   const format::PageGroup& pages) {
  VMSHADOW_ASSERT(group == group_sequences_.size());
  group_sequences_.push_back(sequence);
  for (std::size_t slot = 0; slot < pages.page_count; ++slot) {
    entries_.push_back({page_key(pages.keys[slot]) << kSlotBits | slot, group});
  }
}

void PageTable::Builder::add_zero_runs(std::uint32_t sequence,
                                       const std::vector<format::ZeroRun>& runs) {
  for (const format::ZeroRun& run : runs) {
    runs_.push_back({{page_key(run.first), run.count}, sequence});
  }
}

/// Sweeps the pages with the runs that cover them, the latest run on top.
void PageTable::Builder::drop_pages_zeroed_later() {
  const auto earlier = [](const SequencedRun* a, const SequencedRun* b) {
    return a->sequence < b->sequence;
  };
  std::priority_queue<const SequencedRun*, std::vector<const SequencedRun*>, decltype(earlier)>
      covering(earlier);
  auto next_run = runs_.begin();
  std::erase_if(entries_, [&](const Entry& entry) {
    const std::uint64_t key = entry.key >> kSlotBits;
    for (; next_run != runs_.end() && next_run->run.first <= key; ++next_run) {
      covering.push(&*next_run);
    }
    while (!covering.empty() && key - covering.top()->run.first >= covering.top()->run.count) {
      covering.pop();
    }
    return !covering.empty() && covering.top()->sequence > group_sequences_[entry.group];
  });
}

PageTable PageTable::Builder::finish() {
  // By page, the newest group first; then only the first of each page stays.
  std::sort(entries_.begin(), entries_.end(), [](const Entry& a, const Entry& b) {
    const std::uint64_t page_a = a.key >> kSlotBits;
    const std::uint64_t page_b = b.key >> kSlotBits;
    return page_a != page_b ? page_a < page_b : a.group > b.group;
  });
  entries_.erase(std::unique(entries_.begin(), entries_.end(),
                             [](const Entry& a, const Entry& b) {
                               return a.key >> kSlotBits == b.key >> kSlotBits;
                             }),
                 entries_.end());
  std::sort(runs_.begin(), runs_.end(),
            [](const SequencedRun& a, const SequencedRun& b) { return a.run.first < b.run.first; });
  drop_pages_zeroed_later();

  PageTable table;
  table.keys_.reserve(entries_.size());
  table.groups_.reserve(entries_.size());
  for (const Entry& entry : entries_) {
    table.keys_.push_back(entry.key);
    table.groups_.push_back(entry.group);
  }
  for (const SequencedRun& next : runs_) {
    // Runs stay inside their block (decode_zero_pages checks), so merging never joins two blocks
    // unless a block is as long as blocks may be; keep those apart.
    Run* last = table.zero_runs_.empty() ? nullptr : &table.zero_runs_.back();
    if (last != nullptr && next.run.first <= last->first + last->count &&
        next.run.first >> (48 - kSlotBits) == last->first >> (48 - kSlotBits)) {
      last->count = std::max(last->count, next.run.first + next.run.count - last->first);
    } else {
      table.zero_runs_.push_back(next.run);
    }
  }
  table.zero_runs_.shrink_to_fit();
  *this = Builder();
  return table;
}

}  // namespace vmshadow::store
