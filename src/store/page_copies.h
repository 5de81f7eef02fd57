// Finds a page's content elsewhere in the store: another generation began with a full epoch, or the
// guest wrote the same again.
#pragma once

#include <cstdint>
#include <optional>

#include <vmshadow/result.h>
#include <vmshadow/types.h>

#include "store/journal_index.h"
#include "store/segment_files.h"

namespace vmshadow::store {

class PageCopies {
 public:
  /// Both outlive it.
  PageCopies(const JournalIndex& index, const SegmentFiles& segments)
      : index_(index), segments_(segments) {}

  struct Copy {
    Epoch epoch;                       ///< that has it
    std::optional<RecordPlace> place;  ///< nullopt: it is a zero page
  };
  /// A version of the page whose content has that checksum, other than the one in the record at
  /// `damaged`; fills `out` (kPageBytes bytes). Encrypted epochs are left alone: what is in them
  /// must not come out of them by a checksum on the disk.
  [[nodiscard]] std::optional<Copy> find(const SegmentFiles::Owner& owner, format::PageKey key,
                                         std::uint64_t checksum, const RecordPlace& damaged,
                                         MutableByteSpan out);

 private:
  [[nodiscard]] bool read(const SegmentFiles::Owner& owner, const RecordPlace& place,
                          std::size_t slot, format::PageKey key, std::uint64_t checksum,
                          MutableByteSpan out);
  const JournalIndex& index_;
  const SegmentFiles& segments_;
  SegmentFiles::Record record_;
};

}  // namespace vmshadow::store
