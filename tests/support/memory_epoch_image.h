// An EpochImage held in memory, for tests of what reads one.
#pragma once

#include <array>
#include <cstring>
#include <map>
#include <utility>
#include <vector>

#include <vmshadow/shadow_reader.h>

namespace vmshadow::testing {

class MemoryEpochImage : public EpochImage {
 public:
  using Page = std::array<std::byte, kPageBytes>;

  [[nodiscard]] const EpochInfo& info() const override { return info_; }
  [[nodiscard]] const MachineDescription& machine() const override { return machine_; }
  [[nodiscard]] Result<std::vector<std::byte>> device_state() const override {
    return device_state_;
  }
  [[nodiscard]] Status read_page(BlockIndex block, PageNumber page,
                                 MutableByteSpan out) const override {
    const auto found = pages_.find({block, page});
    if (found == pages_.end()) {
      std::memset(out.data(), 0, out.size());
    } else {
      std::memcpy(out.data(), found->second.data(), kPageBytes);
    }
    return {};
  }
  /// Highest page first: no reader may count on an order.
  [[nodiscard]] Status for_each_page(BlockIndex block, const PageVisitor& visit) const override {
    for (auto it = pages_.rbegin(); it != pages_.rend(); ++it) {
      if (it->first.first != block) continue;
      VMSHADOW_TRY(visit(it->first.second, it->second == Page{} ? nullptr : it->second.data()));
    }
    return {};
  }

  EpochInfo info_;
  MachineDescription machine_;
  std::vector<std::byte> device_state_;
  std::map<std::pair<BlockIndex, PageNumber>, Page> pages_;
};

/// A page of one byte.
inline MemoryEpochImage::Page page_of(int value) {
  MemoryEpochImage::Page page;
  page.fill(static_cast<std::byte>(value));
  return page;
}

}  // namespace vmshadow::testing
