// One committed epoch put together from the journal: the newest version of each page among the
// epochs from the full one up to it.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <vmshadow/shadow_reader.h>

#include "store/epoch_index.h"
#include "store/segment_files.h"

namespace vmshadow::store {

class JournalImage final : public EpochImage {
 public:
  /// `chain`: the full epoch first, the image's own last; all undamaged as far as is known.
  JournalImage(std::string vm_name, std::vector<EpochIndexPtr> chain,
               std::shared_ptr<const SegmentFiles> segments);

  [[nodiscard]] const EpochInfo& info() const override { return chain_.back()->info; }
  [[nodiscard]] const MachineDescription& machine() const override {
    return *chain_.front()->machine;
  }
  [[nodiscard]] Result<std::vector<std::byte>> device_state() const override;
  [[nodiscard]] Status read_page(BlockIndex block, PageNumber page,
                                 MutableByteSpan out) const override;
  [[nodiscard]] Status for_each_page(BlockIndex block, const PageVisitor& visit) const override;

 private:
  /// One data page that is the newest version, in the order of the journal.
  struct NeededPage {
    std::uint32_t epoch;  ///< index into chain_
    std::uint32_t group;
    std::uint32_t slot;
    std::uint32_t page_high;
    std::uint32_t page_low;
    [[nodiscard]] PageNumber page() const {
      return PageNumber{(std::uint64_t{page_high} << 32) | page_low};
    }
  };
  [[nodiscard]] Status visit_zero_pages(BlockIndex block, std::uint64_t pages,
                                        const PageVisitor& visit,
                                        std::vector<NeededPage>& needed) const;
  [[nodiscard]] Result<format::PageGroup> read_group(std::uint32_t epoch, std::uint32_t group,
                                                     SegmentFiles::Record& record) const;
  [[nodiscard]] Error with_place(Error error, std::uint32_t epoch, std::uint32_t group) const;
  [[nodiscard]] Result<std::uint64_t> pages_of(BlockIndex block) const;

  const std::string vm_name_;
  const std::vector<EpochIndexPtr> chain_;
  const std::shared_ptr<const SegmentFiles> segments_;
};

}  // namespace vmshadow::store
