// Where one epoch keeps its pages: a sorted table, 12 bytes a data page and 16 a run of zero pages.
//
// A data page is a 64-bit key (block, page number, slot in its group) and the index of its group in
// the epoch's list of groups. Zero pages are a union of disjoint runs. Where a page occurs more
// than once in an epoch its latest record wins; finish() resolves that, so that afterwards a page
// found among the data is data, else zero if a run covers it, else not of this epoch.
//
//   key:  63……48 block │ 47……4 page number │ 3…0 slot
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include <vmshadow/types.h>

#include "format/epoch_records.h"

namespace vmshadow::store {

/// A data page's place: which of the epoch's groups, and which page of the group.
struct PageSlot {
  std::uint32_t group{};
  std::uint32_t slot{};
};

struct PageLookup {
  enum class Kind { absent, zero, data } kind = Kind::absent;
  PageSlot slot;
};

class PageTable {
 public:
  class Builder;

  [[nodiscard]] PageLookup find(format::PageKey key) const;
  [[nodiscard]] std::size_t data_pages() const { return keys_.size(); }
  [[nodiscard]] std::size_t memory_bytes() const;

  /// Calls `visit(PageNumber, PageSlot)` for each data page of `block`, rising.
  template <class Visit>
  void for_each_data_page(BlockIndex block, Visit&& visit) const;
  /// Calls `visit(first, count)` for each run of zero pages of `block`, rising; a run may cover
  /// data pages, which then are data.
  template <class Visit>
  void for_each_zero_run(BlockIndex block, Visit&& visit) const;

 private:
  static constexpr unsigned kSlotBits = 4;
  static_assert(format::kGroupPagesMax <= (std::size_t{1} << kSlotBits));
  static_assert(kRamBlockBytesMax / kPageBytes <= std::uint64_t{1} << (48 - kSlotBits));
  struct Run {
    std::uint64_t first{};  ///< page_key()
    std::uint64_t count{};
  };
  /// Rises with the key; consecutive pages differ by 1. Room for the slot is not yet made.
  static std::uint64_t page_key(format::PageKey key) {
    return (static_cast<std::uint64_t>(key.block.value) << (48 - kSlotBits)) | key.page.value;
  }
  static PageNumber page_of(std::uint64_t page_key) {
    return PageNumber{page_key & ((std::uint64_t{1} << (48 - kSlotBits)) - 1)};
  }
  static PageSlot unpack_slot(std::uint64_t key, std::uint32_t group) {
    return {group, static_cast<std::uint32_t>(key & ((1u << kSlotBits) - 1))};
  }
  [[nodiscard]] std::size_t lower_bound(std::uint64_t page_key) const;

  std::vector<std::uint64_t> keys_;    ///< page_key << kSlotBits | slot, rising
  std::vector<std::uint32_t> groups_;  ///< beside keys_
  std::vector<Run> zero_runs_;         ///< disjoint, rising
};

/// Takes an epoch's records in order.
class PageTable::Builder {
 public:
  /// `group` is the group's index in the epoch's list of groups, rising.
  void add_group(std::uint32_t group, std::uint32_t sequence, const format::PageGroup& pages);
  void add_zero_runs(std::uint32_t sequence, const std::vector<format::ZeroRun>& runs);
  /// Leaves the builder empty.
  [[nodiscard]] PageTable finish();

 private:
  struct Entry {
    std::uint64_t key{};
    std::uint32_t group{};
  };
  struct SequencedRun {
    Run run;
    std::uint32_t sequence{};
  };
  void drop_pages_zeroed_later();

  std::vector<Entry> entries_;
  std::vector<std::uint32_t> group_sequences_;  ///< by group
  std::vector<SequencedRun> runs_;
};

template <class Visit>
void PageTable::for_each_data_page(BlockIndex block, Visit&& visit) const {
  const std::uint64_t end =
      page_key({BlockIndex{block}, PageNumber{0}}) + (std::uint64_t{1} << (48 - kSlotBits));
  for (std::size_t i = lower_bound(page_key({block, PageNumber{0}}));
       i < keys_.size() && (block.value == 0xffff || (keys_[i] >> kSlotBits) < end); ++i) {
    visit(page_of(keys_[i] >> kSlotBits), unpack_slot(keys_[i], groups_[i]));
  }
}

template <class Visit>
void PageTable::for_each_zero_run(BlockIndex block, Visit&& visit) const {
  const std::uint64_t first = page_key({block, PageNumber{0}});
  for (const Run& run : zero_runs_) {
    if ((run.first >> (48 - kSlotBits)) == (first >> (48 - kSlotBits))) {
      visit(page_of(run.first), run.count);
    }
  }
}

}  // namespace vmshadow::store
