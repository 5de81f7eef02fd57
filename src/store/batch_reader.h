// Reads a journal segment batch by batch, where no skeleton can be had.
//
//   head │ batch … mark │ batch … mark │ … │ of the last segment: a batch that is not whole,
//                                            reserved zeros, or what the file held in an earlier
//                                            life
//
// A mark proves the records before it: it names this segment, the batch's begin and the salt of the
// segment's head, and has the chain over their prefixes (format/journal.h). Records of an earlier
// life may be whole, and even stand where a batch would; their marks have another salt.
//
// In the last segment, which its writer died in or writes still, the first batch that is not whole
// ends the journal, unless a mark or a seal further on says that it was durable. Then, and in any
// other segment, it is damage: of such a batch counts what is proven, which is all that is whole if
// only bodies are damaged, and else what could do no harm if it were of an earlier life
// (IndexBuilder::add_unproven).
#pragma once

#include <optional>

#include "format/journal.h"
#include "store/index_builder.h"
#include "store/recovery.h"
#include "store/segment_scanner.h"

namespace vmshadow::store {

/// The salt of a segment whose head is damaged: that of the first mark that names it.
[[nodiscard]] std::optional<format::SegmentSalt> find_salt(SegmentId segment,
                                                           const ByteSource& source);
/// How far marks that stand behind `from`, or a seal, say that the segment was durable; 0 if none
/// does.
[[nodiscard]] std::uint64_t durable_beyond(SegmentId segment, const format::SegmentSalt& salt,
                                           const ByteSource& source, std::uint64_t from);

/// The last segment's records into `recovery` and `builder`, from behind its head, and where it
/// ends. Public for the fuzzer, as is the next.
void recover_last_segment(SegmentId segment, const format::SegmentSalt& salt,
                          const ByteSource& source, const ScanHooks& hooks, Recovery& recovery,
                          IndexBuilder& builder);
/// Those of any other, all of which was durable. Without a salt nothing in it is proven.
void recover_segment(SegmentId segment, const std::optional<format::SegmentSalt>& salt,
                     const ByteSource& source, const ScanHooks& hooks, Recovery& recovery,
                     IndexBuilder& builder);

}  // namespace vmshadow::store
