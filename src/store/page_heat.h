// How often each page of a VM changed in the epochs that are kept: what is rewritten often is worth
// the faster tier, and will soon be dead anyway. One byte a page.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "format/epoch_records.h"
#include "store/epoch_index.h"

namespace vmshadow::store {

class PageHeat {
 public:
  explicit PageHeat(std::span<const EpochIndexPtr> epochs) {
    for (const EpochIndexPtr& epoch : epochs) {
      for (std::size_t i = 0; i < epoch->pages.data_pages(); ++i) {
        const format::PageKey key = epoch->pages.key_at(i);
        if (key.block.value >= blocks_.size()) blocks_.resize(std::size_t{key.block.value} + 1);
        std::vector<std::uint8_t>& pages = blocks_[key.block.value];
        if (key.page.value >= pages.size()) {
          pages.resize(std::max<std::size_t>(key.page.value + 1, pages.size() * 2));
        }
        std::uint8_t& count = pages[key.page.value];
        if (count < UINT8_MAX) ++count;
      }
    }
  }

  [[nodiscard]] unsigned versions(const format::PageKey& key) const {
    if (key.block.value >= blocks_.size()) return 0;
    const std::vector<std::uint8_t>& pages = blocks_[key.block.value];
    return key.page.value < pages.size() ? pages[key.page.value] : 0;
  }

 private:
  std::vector<std::vector<std::uint8_t>> blocks_;
};

}  // namespace vmshadow::store
