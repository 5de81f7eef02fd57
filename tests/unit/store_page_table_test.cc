// The page table: what exact records make of it, and what it weighs.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "store/page_table.h"
#include "store/table_merge.h"

namespace vmshadow::store {
namespace {

using format::PageKey;
using testing::ElementsAre;

PageKey key(std::uint64_t page, std::uint16_t block = 0) {
  return {BlockIndex{block}, PageNumber{page}};
}

format::PageGroup group_of(std::initializer_list<PageKey> keys) {
  format::PageGroup group;
  for (const PageKey& k : keys) group.keys[group.page_count++] = k;
  return group;
}

std::vector<std::pair<std::uint64_t, std::uint64_t>> zeros(const PageTable& table,
                                                           std::uint16_t block = 0) {
  std::vector<std::pair<std::uint64_t, std::uint64_t>> runs;
  table.for_each_zero_run(BlockIndex{block}, [&](PageNumber first, std::uint64_t count) {
    runs.emplace_back(first.value, count);
  });
  return runs;
}

TEST(PageTableTest, TheLastBlockAndPage) {
  const PageKey last{BlockIndex{65535}, PageNumber{kRamBlockBytesMax / kPageBytes - 1}};
  const PageKey other{BlockIndex{65534}, last.page};
  PageTable::Builder builder;
  builder.add_group(0, 0, group_of({other, last}));
  builder.add_zero_runs(1, {{key(10, 3), 5}});
  const PageTable table = builder.finish();
  EXPECT_EQ(table.find(last).slot.slot, 1u);
  EXPECT_EQ(table.find({last.block, PageNumber{0}}).kind, PageLookup::Kind::absent);
  int visits = 0;
  table.for_each_data_page(last.block, [&](PageNumber page, PageSlot slot) {
    ++visits;
    EXPECT_EQ(page, last.page);
    EXPECT_EQ(slot.slot, 1u);
  });
  EXPECT_EQ(visits, 1);
  EXPECT_LE(table.memory_bytes(), 2 * 12 + 16u);
}

TEST(PageTableTest, ZeroRunsAreCutAtDataAndJoined) {
  PageTable::Builder builder;
  builder.add_zero_runs(0, {{key(0), 10}, {key(0, 1), 4}});
  builder.add_group(0, 1, group_of({key(3), key(9), key(12), key(13)}));
  builder.add_zero_runs(2, {{key(12), 1}, {key(10), 2}});
  const PageTable table = builder.finish();
  EXPECT_THAT(zeros(table), ElementsAre(std::pair(0, 3), std::pair(4, 5), std::pair(10, 3)));
  EXPECT_THAT(zeros(table, 1), ElementsAre(std::pair(0, 4)));
  EXPECT_EQ(table.data_pages(), 3u);
  EXPECT_EQ(table.find(key(12)).kind, PageLookup::Kind::zero);
  EXPECT_EQ(table.find(key(13)).slot.slot, 3u);
}

TEST(PageTableTest, TakesAtMost13BytesADataPage) {
  PageTable::Builder builder;
  constexpr std::uint32_t groups = 70'000;  // just behind a doubling of what a vector holds
  for (std::uint32_t group = 0; group < groups; ++group) {
    format::PageGroup pages;
    for (; pages.page_count < 16; ++pages.page_count) {
      pages.keys[pages.page_count] = key(group * 16 + pages.page_count);
    }
    builder.add_group(group, group, pages);
  }
  const PageTable table = builder.finish();
  EXPECT_EQ(table.data_pages(), groups * 16u);
  EXPECT_LE(table.memory_bytes(), table.data_pages() * 13);
}

TEST(TableMergeTest, OldGroupsThatNobodyNeedsGo) {
  PageTable::Builder builder;
  const auto place = [](std::uint64_t epoch, std::uint64_t offset) {
    return RecordPlace::at({SegmentId{epoch}, SegmentOffset{offset}}, 1'000, Epoch{epoch}, 2);
  };
  builder.add_group(0, 0, group_of({key(1), key(2)}));
  builder.add_group(1, 1, group_of({key(3), key(4)}));
  const PageTable old = builder.finish();
  builder.add_zero_runs(0, {{key(1), 2}});
  builder.add_group(0, 1, group_of({key(4), key(5)}));
  const PageTable young = builder.finish();
  const std::vector<RecordPlace> old_groups = {place(1, 0), place(1, 2'000)};
  const std::vector<RecordPlace> young_groups = {place(2, 64)};
  const std::vector<TableRef> tables = {{&old, old_groups}, {&young, young_groups}};
  const PlacedTable merged = merge_tables(tables);
  EXPECT_THAT(merged.groups, ElementsAre(place(1, 2'000), place(2, 64)));
  EXPECT_THAT(zeros(merged.pages), ElementsAre(std::pair(1, 2)));
  EXPECT_EQ(merged.pages.find(key(3)).slot.group, 0u);
  EXPECT_EQ(merged.pages.find(key(4)).slot.group, 1u);
  const std::uint64_t bytes = place(1, 0).record_bytes();
  EXPECT_THAT(segment_use(merged.ref()), ElementsAre(SegmentUse{SegmentId{1}, bytes / 2, 1},
                                                     SegmentUse{SegmentId{2}, bytes, 2}));
  EXPECT_EQ(merge_tables({}).pages.data_pages(), 0u);
}

TEST(RecordPlaceTest, HoldsTheLargestOfEverything) {
  const format::JournalPosition at{SegmentId{0xffff'ffff}, SegmentOffset{kSegmentBytesMax - 8}};
  const RecordPlace place =
      RecordPlace::at(at, format::kRecordBodyBytesMax, Epoch{~std::uint64_t{0}}, 16);
  EXPECT_EQ(place.position(), at);
  EXPECT_EQ(place.body_bytes(), format::kRecordBodyBytesMax);
  EXPECT_EQ(place.epoch(), Epoch{~std::uint64_t{0}});
  EXPECT_EQ(place.pages(), 16u);
}

}  // namespace
}  // namespace vmshadow::store
