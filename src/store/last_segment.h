// Reads the last journal segment where it is not sealed: the writer died in it, or writes it still.
//
//   head │ batch … mark │ batch … mark │ … │ a batch that is not whole, reserved zeros, or what the
//                                            file held in an earlier life
//
// A batch counts only whole: its records, their chain and its mark, which names this segment, the
// batch's begin and the salt of the segment's head (format/journal.h). The first that is not ends
// the journal, unless a mark further on says that it was durable: then it is damage. Records of an
// earlier life may be whole, and even stand where a batch would; their marks have another salt.
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
/// How far marks that stand behind `from` say that the segment was durable; 0 if none does.
[[nodiscard]] std::uint64_t durable_beyond(SegmentId segment, const format::SegmentSalt& salt,
                                           const ByteSource& source, std::uint64_t from);

/// The segment's records into `recovery` and `builder`, from behind its head, and where it ends.
/// Public for the fuzzer.
void recover_last_segment(SegmentId segment, const format::SegmentSalt& salt,
                          const ByteSource& source, const ScanHooks& hooks, Recovery& recovery,
                          IndexBuilder& builder);

}  // namespace vmshadow::store
