// What can still be used of a page_group whose record is damaged: its pages carry their own
// checksums, so those that hold theirs are whole, whatever else is not. Of a sealed one nothing:
// what fails its tag cannot be trusted in part.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include <vmshadow/result.h>
#include <vmshadow/types.h>

#include "format/epoch_records.h"
#include "store/record_place.h"

namespace vmshadow::store {

class DamagedGroup {
 public:
  /// `record` is what was read from `place`. If head and keys cannot be those of the group that the
  /// index has there, no page is known of it; nor if a whole prefix says that it is another record:
  /// it may be one that the file held in an earlier life, of the same pages.
  DamagedGroup(const RecordPlace& place, const VmId& owner, ByteSpan record);

  /// The page, if it is whole; null if not. Valid as long as the group.
  [[nodiscard]] const std::byte* page(std::size_t slot, format::PageKey key) const;
  /// What the head says that the page's checksum was; nullopt if it does not know the page.
  [[nodiscard]] std::optional<std::uint64_t> claimed_checksum(std::size_t slot,
                                                              format::PageKey key) const;
  /// Bit i: page i is whole.
  [[nodiscard]] std::uint16_t whole() const { return whole_; }

 private:
  [[nodiscard]] bool knows(std::size_t slot, format::PageKey key) const {
    return slot < page_count_ && keys_[slot] == key;
  }
  std::size_t page_count_ = 0;
  std::array<format::PageKey, format::kGroupPagesMax> keys_{};
  std::array<std::uint64_t, format::kGroupPagesMax> checksums_{};
  std::uint16_t whole_ = 0;
  std::vector<std::byte> pages_;
};

}  // namespace vmshadow::store
