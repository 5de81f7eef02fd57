// Tables merged, moved and added up, against maps.

#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <map>
#include <optional>

#include "store/resolved_pages.h"
#include "store/table_merge.h"

namespace vmshadow::store {
namespace {

using format::PageKey;

constexpr std::uint16_t kMergeBlocks = 3;
constexpr std::uint64_t kMergePages = 40;

/// Where a data page is, or nullopt if it is zero.
struct Data {
  RecordPlace place;
  std::uint32_t slot{};
  bool operator==(const Data&) const = default;
};
using Model = std::map<PageKey, std::optional<Data>>;

struct MadeTable {
  std::shared_ptr<EpochIndex> index = std::make_shared<EpochIndex>();
  Model model;
  [[nodiscard]] TableRef ref() const { return {&index->pages, index->places.groups}; }
};

PageKey any_merge_key() {
  return {BlockIndex{*rc::gen::inRange<std::uint16_t>(0, kMergeBlocks)},
          PageNumber{*rc::gen::inRange<std::uint64_t>(0, kMergePages)}};
}

/// Groups as QEMU sends them (rising pages) or in any order.
format::PageGroup any_group() {
  format::PageGroup group;
  const auto count = *rc::gen::inRange<std::size_t>(1, format::kGroupPagesMax + 1);
  std::vector<PageKey> keys;
  for (std::size_t i = 0; i < count; ++i) {
    const PageKey key = any_merge_key();
    if (std::find(keys.begin(), keys.end(), key) == keys.end()) keys.push_back(key);
  }
  if (*rc::gen::arbitrary<bool>()) std::sort(keys.begin(), keys.end());
  std::copy(keys.begin(), keys.end(), group.keys.begin());
  group.page_count = keys.size();
  return group;
}

MadeTable any_table(std::uint64_t epoch) {
  MadeTable made;
  PageTable::Builder builder;
  std::vector<RecordPlace>& groups = made.index->places.groups;
  const auto records = *rc::gen::inRange<std::uint32_t>(0, 8);
  for (std::uint32_t sequence = 0; sequence < records; ++sequence) {
    if (*rc::gen::weightedElement<bool>({{2, true}, {1, false}})) {
      const format::PageGroup group = any_group();
      const SegmentId segment{*rc::gen::inRange<std::uint64_t>(1, 5)};
      const SegmentOffset offset{epoch << 20 | groups.size() << 3};
      groups.push_back(RecordPlace::at({segment, offset}, *rc::gen::inRange<std::uint32_t>(1, 999),
                                       Epoch{epoch}, group.page_count));
      builder.add_group(static_cast<std::uint32_t>(groups.size() - 1), sequence, group);
      for (std::uint32_t slot = 0; slot < group.page_count; ++slot) {
        made.model[group.keys[slot]] = Data{groups.back(), slot};
      }
    } else {
      const PageKey first = any_merge_key();
      const auto count = *rc::gen::inRange<std::uint64_t>(1, kMergePages - first.page.value + 1);
      builder.add_zero_runs(sequence, {{first, count}});
      for (std::uint64_t i = 0; i < count; ++i) {
        made.model[{first.block, PageNumber{first.page.value + i}}] = std::nullopt;
      }
    }
  }
  made.index->pages = builder.finish();
  return made;
}

/// What is wrong with a table, if anything: with its look-ups, its order or its runs.
std::string differs(const PageTable& pages, std::span<const RecordPlace> groups,
                    const Model& model) {
  std::size_t data_pages = 0;
  for (std::uint16_t block = 0; block < kMergeBlocks; ++block) {
    std::map<std::uint64_t, PageLookup::Kind> visited;
    bool twice = false;
    pages.for_each_data_page(BlockIndex{block}, [&](PageNumber page, PageSlot slot) {
      const auto found = model.find({BlockIndex{block}, page});
      twice = twice || found == model.end() || !found->second ||
              *found->second != Data{groups[slot.group], slot.slot} ||
              !visited.emplace(page.value, PageLookup::Kind::data).second;
    });
    std::optional<std::uint64_t> last_end;
    pages.for_each_zero_run(BlockIndex{block}, [&](PageNumber first, std::uint64_t count) {
      if (last_end && first.value <= *last_end) twice = true;  // not joined, or not disjoint
      last_end = first.value + count;
      for (std::uint64_t i = 0; i < count; ++i) {
        twice = twice || !visited.emplace(first.value + i, PageLookup::Kind::zero).second;
      }
    });
    if (twice) return "a page is visited that should not be, or twice, or runs meet";
    for (std::uint64_t page = 0; page < kMergePages; ++page) {
      const PageKey key{BlockIndex{block}, PageNumber{page}};
      const PageLookup found = pages.find(key);
      const auto wanted = model.find(key);
      if (wanted == model.end()) {
        if (found.kind != PageLookup::Kind::absent || visited.contains(page)) return "not absent";
      } else if (!visited.contains(page) || found.kind != visited.at(page)) {
        return "find and for_each differ";
      } else if (!wanted->second) {
        if (found.kind != PageLookup::Kind::zero) return "not zero";
      } else {
        ++data_pages;
        if (found.kind != PageLookup::Kind::data) return "not data";
        if (Data{groups[found.slot.group], found.slot.slot} != *wanted->second) return "elsewhere";
      }
    }
  }
  return pages.data_pages() == data_pages ? "" : "the page count differs";
}

std::vector<MadeTable> any_tables() {
  std::vector<MadeTable> tables;
  const auto count = *rc::gen::inRange<std::uint64_t>(1, 9);
  for (std::uint64_t epoch = 0; epoch < count; ++epoch) tables.push_back(any_table(epoch));
  return tables;
}

Model applied(const std::vector<MadeTable>& tables) {
  Model model;
  for (const MadeTable& table : tables) {
    for (const auto& [key, state] : table.model) model[key] = state;
  }
  return model;
}

PlacedTable merged(const std::vector<MadeTable>& tables) {
  std::vector<TableRef> refs;
  for (const MadeTable& table : tables) refs.push_back(table.ref());
  return merge_tables(refs);
}

bool needs_all_groups(const PlacedTable& table) {
  const auto pages = table.pages.pages_by_group(table.groups.size());
  return std::find(pages.begin(), pages.end(), 0) == pages.end();
}

RC_GTEST_PROP(TableMergeProperty, ATableIsItsRecordsInOrder, ()) {
  const MadeTable made = any_table(7);
  RC_ASSERT(differs(made.index->pages, made.index->places.groups, made.model) == "");
}

RC_GTEST_PROP(TableMergeProperty, MergingIsApplyingInOrder, ()) {
  const auto tables = any_tables();
  const PlacedTable all = merged(tables);
  RC_ASSERT(differs(all.pages, all.groups, applied(tables)) == "");
  RC_ASSERT(needs_all_groups(all));
  RC_ASSERT(std::is_sorted(all.groups.begin(), all.groups.end(), [](const auto& a, const auto& b) {
    return a.offset() < b.offset();  // which rise with the epochs here
  }));
}

RC_GTEST_PROP(TableMergeProperty, MergesMayBeNested, ()) {
  const auto tables = any_tables();
  const auto cut = *rc::gen::inRange<std::size_t>(0, tables.size() + 1);
  std::vector<TableRef> old;
  std::vector<TableRef> all;
  for (std::size_t i = 0; i < tables.size(); ++i) (i < cut ? old : all).push_back(tables[i].ref());
  const PlacedTable old_merged = merge_tables(old);
  all.insert(all.begin(), old_merged.ref());
  const PlacedTable both = merge_tables(all);
  RC_ASSERT(differs(both.pages, both.groups, applied(tables)) == "");
  RC_ASSERT(both.groups == merged(tables).groups);
}

RC_GTEST_PROP(TableMergeProperty, ResolvedPagesAreTheMerge, ()) {
  const auto tables = any_tables();
  std::vector<EpochIndexPtr> chain;
  for (const MadeTable& table : tables) chain.push_back(table.index);
  const ResolvedPages resolved(chain, *rc::gen::inRange<std::size_t>(0, kMergeBlocks + 2));
  const Model model = applied(tables);
  for (std::uint16_t block = 0; block < kMergeBlocks + 1; ++block) {
    for (std::uint64_t page = 0; page < kMergePages + 30; ++page) {
      const PageKey key{BlockIndex{block}, PageNumber{page}};
      const PageLookup found = resolved.find(key);
      const auto wanted = model.find(key);
      if (wanted == model.end()) {
        RC_ASSERT(found.kind == PageLookup::Kind::absent);
      } else if (!wanted->second) {
        RC_ASSERT(found.kind == PageLookup::Kind::zero);
      } else {
        RC_ASSERT(found.kind == PageLookup::Kind::data);
        RC_ASSERT((Data{resolved.groups()[found.slot.group], found.slot.slot} == *wanted->second));
      }
    }
  }
}

RC_GTEST_PROP(TableMergeProperty, RelocatingMovesJustThosePages, ()) {
  const MadeTable made = any_table(3);
  Model model = made.model;
  std::vector<RecordPlace> new_groups;
  for (std::uint64_t i = 0; i < 4; ++i) {
    new_groups.push_back(RecordPlace::at({SegmentId{9}, SegmentOffset{i << 3}}, 50, Epoch{i}, 16));
  }
  std::vector<PageTable::Move> moves;
  for (auto& [key, state] : model) {
    if (!state || *rc::gen::arbitrary<bool>()) continue;
    const PageSlot to{*rc::gen::inRange<std::uint32_t>(0, 4),
                      *rc::gen::inRange<std::uint32_t>(0, 16)};
    moves.push_back({key, to});
    state = Data{new_groups[to.group], to.slot};
  }
  const PlacedTable moved = relocate_pages(made.ref(), moves, new_groups);
  RC_ASSERT(differs(moved.pages, moved.groups, model) == "");
  RC_ASSERT(needs_all_groups(moved));
}

RC_GTEST_PROP(TableMergeProperty, SegmentUseAddsUp, ()) {
  const PlacedTable all = merged(any_tables());
  const std::vector<RecordPlace> device = {
      RecordPlace::at({SegmentId{2}, SegmentOffset{8}}, 100, Epoch{1})};
  const auto uses = segment_use(all.ref(), device);
  const auto pages = all.pages.pages_by_group(all.groups.size());
  std::map<std::uint64_t, SegmentUse> wanted;
  for (std::size_t group = 0; group < all.groups.size(); ++group) {
    const RecordPlace& place = all.groups[group];
    SegmentUse& use = wanted[place.segment().value];
    use.segment = place.segment();
    use.live_pages += pages[group];
    use.live_bytes += place.record_bytes() * pages[group] / place.pages();
  }
  wanted[2].segment = SegmentId{2};
  wanted[2].live_bytes += device[0].record_bytes();
  RC_ASSERT(uses.size() == wanted.size());
  std::size_t i = 0;
  for (const auto& [segment, use] : wanted) RC_ASSERT(uses[i++] == use);
}

}  // namespace
}  // namespace vmshadow::store
