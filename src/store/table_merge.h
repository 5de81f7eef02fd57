// What thinning and moving do to an epoch's pages: its table together with the places of its
// groups, which may be records of several epochs.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "store/page_table.h"
#include "store/record_place.h"

namespace vmshadow::store {

/// Somebody's table; PageSlot::group indexes `groups`.
struct TableRef {
  const PageTable* pages{};
  std::span<const RecordPlace> groups;
};

/// A table of its own, with just the groups that it needs, in their old order.
struct PlacedTable {
  PageTable pages;
  std::vector<RecordPlace> groups;
  [[nodiscard]] TableRef ref() const { return {&pages, groups}; }
};

/// What one epoch holds that stands for all of these: of each page the newest state.
[[nodiscard]] PlacedTable merge_tables(std::span<const TableRef> oldest_to_newest);

/// The same pages with some of them elsewhere: PageTable::Move::to.group indexes `new_groups`.
/// Moves rise by page and name data pages only.
[[nodiscard]] PlacedTable relocate_pages(const TableRef& table,
                                         std::span<const PageTable::Move> moves,
                                         std::span<const RecordPlace> new_groups);

/// How much of a segment something needs. Bytes are those of records; of a group that is needed in
/// part, its pages' share.
struct SegmentUse {
  SegmentId segment;
  std::uint64_t live_bytes{};
  std::uint64_t live_pages{};
  bool operator==(const SegmentUse&) const = default;
};
/// Rising by segment. `others`: records that are needed whole (device state).
[[nodiscard]] std::vector<SegmentUse> segment_use(const TableRef& table,
                                                  std::span<const RecordPlace> others = {});

}  // namespace vmshadow::store
