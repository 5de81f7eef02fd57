// Where one epoch keeps its pages: a sorted table, 12 bytes a data page and 16 a run of zero pages.
//
// A data page is a 64-bit key (block, page number, slot in its group) and the index of its group in
// the list of groups that goes with the table. Zero pages are runs: disjoint, rising, as long as
// can be, and without data pages. So a page is data, zero or not of this epoch, never two of these;
// of several records of a page the latest counts.
//
// An epoch that is dropped is merged into the next one that is kept: the newest of each page stays.
// Tables are values: merge() and relocate() make new ones.
//
//   key:  63……48 block │ 47……4 page number │ 3…0 slot
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include <vmshadow/types.h>

#include "format/epoch_records.h"
#include "store/page_runs.h"

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
  /// Data and zero pages.
  [[nodiscard]] std::uint64_t page_count() const;
  [[nodiscard]] std::size_t memory_bytes() const;
  [[nodiscard]] std::span<const PageRun> zero_runs() const { return zero_runs_; }
  /// The same as records have them.
  [[nodiscard]] std::vector<format::ZeroRun> zero_run_list() const;

  /// Data pages by their place in the table, rising by block and page.
  struct Range {
    std::size_t begin{};
    std::size_t end{};
    [[nodiscard]] std::size_t size() const { return end - begin; }
  };
  [[nodiscard]] Range data_range(BlockIndex block) const;
  [[nodiscard]] PageNumber page_at(std::size_t i) const { return page_of(keys_[i] >> kSlotBits); }
  [[nodiscard]] format::PageKey key_at(std::size_t i) const {
    return unpack_key(keys_[i] >> kSlotBits);
  }
  [[nodiscard]] PageSlot slot_at(std::size_t i) const { return unpack_slot(keys_[i], groups_[i]); }
  /// find() for who knows that the page, if it is data, is in `range`.
  [[nodiscard]] PageLookup find_within(format::PageKey key, Range range) const;

  /// Calls `visit(PageNumber, PageSlot)` for each data page of `block`, rising.
  template <class Visit>
  void for_each_data_page(BlockIndex block, Visit&& visit) const;
  /// Calls `visit(first, count)` for each run of zero pages of `block`, rising.
  template <class Visit>
  void for_each_zero_run(BlockIndex block, Visit&& visit) const;

  struct MergeSource {
    const PageTable* table{};
    std::uint32_t first_group{};  ///< is added to its groups' numbers; rising by the groups' count
  };
  /// The newest state of each page. n log(sources), and two passes over what zero runs there are.
  [[nodiscard]] static PageTable merge(std::span<const MergeSource> oldest_to_newest);

  struct Move {
    format::PageKey page;
    PageSlot to;
  };
  /// The same with other places for some of its data pages; moves rise by page.
  [[nodiscard]] PageTable relocate(std::span<const Move> moves) const;

  /// How many pages each group is needed for.
  [[nodiscard]] std::vector<std::uint8_t> pages_by_group(std::size_t group_count) const;
  /// Numbers the groups that are needed anew, in the same order; returns their old numbers.
  std::vector<std::uint32_t> drop_unused_groups(std::size_t group_count);

 private:
  static constexpr unsigned kSlotBits = 4;
  static constexpr std::uint64_t kBlockPages = std::uint64_t{1} << (48 - kSlotBits);
  static_assert(format::kGroupPagesMax <= (std::size_t{1} << kSlotBits));
  static_assert(kRamBlockBytesMax / kPageBytes <= kBlockPages);
  /// Rises with the key; consecutive pages differ by 1. Room for the slot is not yet made.
  static std::uint64_t page_key(format::PageKey key) {
    return static_cast<std::uint64_t>(key.block.value) * kBlockPages | key.page.value;
  }
  static format::PageKey unpack_key(std::uint64_t page_key) {
    return {BlockIndex{static_cast<std::uint16_t>(page_key / kBlockPages)}, page_of(page_key)};
  }
  static PageNumber page_of(std::uint64_t page_key) { return PageNumber{page_key % kBlockPages}; }
  static PageSlot unpack_slot(std::uint64_t key, std::uint32_t group) {
    return {group, static_cast<std::uint32_t>(key & ((1u << kSlotBits) - 1))};
  }
  [[nodiscard]] std::size_t lower_bound(std::uint64_t page_key, std::size_t from = 0) const;
  template <class RankOf>
  void settle_zeros(std::vector<RankedRun> runs, RankOf&& rank_of);

  std::vector<std::uint64_t> keys_;    ///< page_key << kSlotBits | slot, rising
  std::vector<std::uint32_t> groups_;  ///< beside keys_
  std::vector<PageRun> zero_runs_;     ///< in page_key()s
};

/// Takes an epoch's records in order. Pages that come in order (QEMU sends them so, in a few
/// passes) cost next to nothing at the end.
class PageTable::Builder {
 public:
  /// `group` is the group's index in the epoch's list of groups, rising.
  void add_group(std::uint32_t group, std::uint32_t sequence, const format::PageGroup& pages);
  void add_zero_runs(std::uint32_t sequence, const std::vector<format::ZeroRun>& runs);
  /// Leaves the builder empty.
  [[nodiscard]] PageTable finish();

 private:
  std::vector<std::uint64_t> keys_;  ///< as in the table, but in the order they came
  std::vector<std::uint32_t> groups_;
  std::vector<std::size_t> stretches_;          ///< where in keys_ pages that rise begin
  std::vector<std::uint32_t> group_sequences_;  ///< by group
  std::vector<RankedRun> runs_;
};

template <class Visit>
void PageTable::for_each_data_page(BlockIndex block, Visit&& visit) const {
  const Range range = data_range(block);
  for (std::size_t i = range.begin; i < range.end; ++i) visit(page_at(i), slot_at(i));
}

template <class Visit>
void PageTable::for_each_zero_run(BlockIndex block, Visit&& visit) const {
  const std::uint64_t first = page_key({block, PageNumber{0}});
  auto run = std::lower_bound(zero_runs_.begin(), zero_runs_.end(), first,
                              [](const PageRun& r, std::uint64_t key) { return r.first < key; });
  for (; run != zero_runs_.end() && run->first / kBlockPages == block.value; ++run) {
    visit(page_of(run->first), run->count);
  }
}

}  // namespace vmshadow::store
