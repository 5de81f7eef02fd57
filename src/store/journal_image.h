// One committed epoch put together from the journal: the newest version of each page among the
// epochs from the full one up to it. Where that is is worked out once, when a page is first read.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include <vmshadow/shadow_reader.h>

#include "store/epoch_index.h"
#include "store/resolved_pages.h"
#include "store/segment_files.h"

namespace vmshadow::store {

class JournalImage final : public EpochImage {
 public:
  /// `chain`: the full epoch first, the image's own last; all undamaged as far as is known. Its
  /// machine is read if it is sealed: errors as SegmentFiles::plain_body().
  [[nodiscard]] static Result<std::unique_ptr<JournalImage>> open(
      SegmentFiles::Owner owner, std::vector<EpochIndexPtr> chain,
      std::shared_ptr<const SegmentFiles> segments, SegmentFiles::Hold held);

  [[nodiscard]] const EpochInfo& info() const override { return chain_.back()->info; }
  [[nodiscard]] const MachineDescription& machine() const override { return *machine_; }
  [[nodiscard]] Result<std::vector<std::byte>> device_state() const override;
  [[nodiscard]] Status read_page(BlockIndex block, PageNumber page,
                                 MutableByteSpan out) const override;
  [[nodiscard]] Status for_each_page(BlockIndex block, const PageVisitor& visit) const override;

 private:
  /// A page of a group that is to be read.
  struct Wanted {
    std::size_t slot{};
    format::PageKey key;
  };
  JournalImage(SegmentFiles::Owner owner, std::vector<EpochIndexPtr> chain, MachinePtr machine,
               std::shared_ptr<const SegmentFiles> segments, SegmentFiles::Hold held);
  [[nodiscard]] const ResolvedPages& resolved() const;
  /// Visits the data pages of `range` in the order of the journal.
  [[nodiscard]] Status visit_data_pages(BlockIndex block, PageTable::Range range,
                                        const PageVisitor& visit) const;
  /// Reads one page of the group at `place` by itself.
  [[nodiscard]] Status read_from_group(const RecordPlace& place, std::size_t slot,
                                       format::PageKey key, SegmentFiles::Record& record,
                                       MutableByteSpan out) const;
  /// What visit_data_pages() does for a group: checks its keys and decodes what is wanted, each
  /// page to its slot in `out`. On any thread.
  [[nodiscard]] Status decode_group(const RecordPlace& place, ByteSpan body,
                                    std::span<const Wanted> wanted, MutableByteSpan out) const;
  [[nodiscard]] Status visit_damaged_group(const RecordPlace& place, std::span<const Wanted> wanted,
                                           const Error& error, const PageVisitor& visit) const;
  [[nodiscard]] Error with_place(Error error, const RecordPlace& place) const;
  [[nodiscard]] Result<std::uint64_t> pages_of(BlockIndex block) const;

  const SegmentFiles::Owner owner_;
  const std::vector<EpochIndexPtr> chain_;
  const MachinePtr machine_;
  const std::shared_ptr<const SegmentFiles> segments_;
  const SegmentFiles::Hold held_;  ///< all segments it reads
  mutable std::once_flag resolved_once_;
  mutable std::optional<ResolvedPages> resolved_;
};

}  // namespace vmshadow::store
