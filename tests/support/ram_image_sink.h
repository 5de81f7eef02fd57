// A page sink that keeps the RAM image: what a secondary would hold after the newest epoch.
#pragma once

#include <algorithm>
#include <cstring>
#include <optional>
#include <string_view>
#include <vector>

#include <vmshadow/page_sink.h>

#include "base/assert.h"

namespace vmshadow::test {

class RamImageSink final : public PageSink {
 public:
  void begin_epoch(const EpochBegin& begin) override {
    if (!begin.full) return;
    layout_ = begin.machine->layout;
    blocks_.clear();
    for (const RamBlock& block : layout_.blocks) blocks_.emplace_back(block.bytes);
  }
  void add(PageBatch batch) override {
    for (const PageRef& page : batch.pages) {
      const MutableByteSpan block = blocks_.at(page.block.value);
      VMSHADOW_ASSERT(page.page.value < block.size() / kPageBytes);
      std::byte* const at = block.data() + page.page.value * kPageBytes;
      if (page.data == nullptr) {
        std::memset(at, 0, kPageBytes);
      } else {
        std::memcpy(at, page.data, kPageBytes);
      }
    }
    pages_ += batch.pages.size();
  }
  void end_epoch(EpochEnd end) override {
    newest_ = end.epoch;
    device_bytes_ = end.device_state.size();
  }
  void abandon_epoch() override { ++abandoned_; }
  [[nodiscard]] Result<bool> wait_for_room(std::chrono::nanoseconds) override { return true; }

  /// A block's bytes by QEMU's name, "pc.ram"; empty if there is none.
  [[nodiscard]] MutableByteSpan block(std::string_view name) {
    for (std::size_t i = 0; i < blocks_.size(); ++i) {
      if (layout_.blocks[i].name == name) return blocks_[i];
    }
    return {};
  }
  /// The newest complete epoch.
  [[nodiscard]] std::optional<Epoch> newest() const { return newest_; }
  [[nodiscard]] std::size_t device_bytes() const { return device_bytes_; }
  /// Pages received in all.
  [[nodiscard]] std::uint64_t pages() const { return pages_; }
  [[nodiscard]] std::uint64_t abandoned() const { return abandoned_; }

 private:
  RamLayout layout_;
  std::vector<std::vector<std::byte>> blocks_;
  std::optional<Epoch> newest_;
  std::size_t device_bytes_ = 0;
  std::uint64_t pages_ = 0;
  std::uint64_t abandoned_ = 0;
};

}  // namespace vmshadow::test
