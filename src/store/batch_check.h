// Whether the batches of a journal segment are what their marks were made for (format/journal.h).
#pragma once

#include <cstdint>
#include <optional>

#include <vmshadow/types.h>

#include "format/journal.h"
#include "store/segment_scanner.h"

namespace vmshadow::store {

/// The mark of a batch of this segment's present life; nullopt for any other record, and where the
/// salt is not known.
[[nodiscard]] std::optional<format::Mark> own_mark(SegmentId segment,
                                                   const std::optional<format::SegmentSalt>& salt,
                                                   const GoodRecord& record);

/// Follows a segment from behind its head, batch by batch.
class BatchCheck {
 public:
  BatchCheck(SegmentId segment, const std::optional<format::SegmentSalt>& salt)
      : segment_(segment), salt_(salt) {}

  /// The next record, which ends at `end`. False: it stands where a batch's mark must be, and is
  /// not the one of the records before it.
  [[nodiscard]] bool add(const GoodRecord& record, std::uint64_t end);
  /// A place comes of which nothing is known, or something that is told of already: nothing can be
  /// said of its batch.
  void skip() { is_known_ = false; }
  /// Where the present batch begins; behind add(), the one that it ended.
  [[nodiscard]] std::uint64_t begin() const { return begin_; }

 private:
  const SegmentId segment_;
  const std::optional<format::SegmentSalt> salt_;
  std::uint64_t begin_ = format::kSegmentHeadBytes;
  std::uint64_t next_begin_ = format::kSegmentHeadBytes;
  std::uint64_t chain_ = 0;
  bool is_known_ = true;
};

}  // namespace vmshadow::store
