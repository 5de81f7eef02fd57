// An epoch's pages with all the epochs it builds on taken together: where the newest version of
// each page is. About 14 bytes a data page; a look-up costs one or two cache misses.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "store/epoch_index.h"
#include "store/table_merge.h"

namespace vmshadow::store {

class ResolvedPages {
 public:
  /// `chain`: the full epoch first. Refers to it if it is one epoch only.
  explicit ResolvedPages(std::span<const EpochIndexPtr> chain, std::size_t block_count);
  ResolvedPages(const ResolvedPages&) = delete;  // table_ may refer to own_
  ResolvedPages& operator=(const ResolvedPages&) = delete;

  [[nodiscard]] PageLookup find(format::PageKey key) const;
  [[nodiscard]] const PageTable& pages() const { return *table_.pages; }
  [[nodiscard]] std::span<const RecordPlace> groups() const { return table_.groups; }

 private:
  /// Where in the table the pages of each chunk of 2^shift pages begin; chunks are so small that
  /// what is left to search is a cache line or two.
  struct Block {
    PageTable::Range range;
    unsigned shift = 0;
    std::vector<std::uint32_t> starts;  ///< from range.begin; one more than chunks
  };
  [[nodiscard]] Block make_block(BlockIndex index) const;

  std::optional<PlacedTable> own_;
  TableRef table_;
  std::vector<Block> blocks_;
};

}  // namespace vmshadow::store
