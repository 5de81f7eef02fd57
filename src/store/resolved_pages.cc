#include "store/resolved_pages.h"

#include <limits>

#include "base/assert.h"

namespace vmshadow::store {

ResolvedPages::ResolvedPages(std::span<const EpochIndexPtr> chain, std::size_t block_count) {
  VMSHADOW_ASSERT(!chain.empty());
  std::vector<TableRef> tables;
  tables.reserve(chain.size());
  for (const EpochIndexPtr& epoch : chain) tables.push_back({&epoch->pages, epoch->places.groups});
  if (chain.size() == 1) {
    table_ = tables.front();
  } else {
    own_ = merge_tables(tables);
    table_ = own_->ref();
  }
  blocks_.reserve(block_count);
  for (std::size_t i = 0; i < block_count; ++i) {
    blocks_.push_back(make_block(BlockIndex{static_cast<std::uint16_t>(i)}));
  }
}

ResolvedPages::Block ResolvedPages::make_block(BlockIndex index) const {
  const PageTable& table = pages();
  Block block;
  block.range = table.data_range(index);
  const std::size_t size = block.range.size();
  if (size == 0 || size > std::numeric_limits<std::uint32_t>::max()) return block;
  // A start for every 8 data pages, however few of the block's pages are data.
  const std::uint64_t last = table.page_at(block.range.end - 1).value;
  block.shift = 3;
  while ((last >> block.shift) > size / 8) ++block.shift;
  block.starts.reserve(static_cast<std::size_t>(last >> block.shift) + 2);
  for (std::uint32_t i = 0; i < size; ++i) {
    const std::uint64_t chunk = table.page_at(block.range.begin + i).value >> block.shift;
    while (block.starts.size() <= chunk) block.starts.push_back(i);
  }
  block.starts.push_back(static_cast<std::uint32_t>(size));
  return block;
}

PageLookup ResolvedPages::find(format::PageKey key) const {
  if (key.block.value >= blocks_.size()) return pages().find(key);
  const Block& block = blocks_[key.block.value];
  PageTable::Range range = block.range;
  if (!block.starts.empty()) {
    const std::uint64_t chunk = key.page.value >> block.shift;
    if (chunk + 1 < block.starts.size()) {
      range = {block.range.begin + block.starts[chunk],
               block.range.begin + block.starts[chunk + 1]};
    } else {
      range = {block.range.end, block.range.end};
    }
  }
  return pages().find_within(key, range);
}

}  // namespace vmshadow::store
