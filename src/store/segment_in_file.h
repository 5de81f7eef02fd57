// A segment's file as recovery finds it, and what its head says, or else what can be told without.
#pragma once

#include <optional>
#include <string>

#include <vmshadow/result.h>

#include "base/unique_fd.h"
#include "format/journal.h"
#include "store/directory.h"
#include "store/segment_scanner.h"

namespace vmshadow::store {

struct SegmentInFile {
  StoreDirectory::SegmentFile where;
  UniqueFd fd;
  FileSource source;
  format::SegmentKind kind{};
  std::optional<format::SegmentSalt> salt;  ///< of a journal segment, as far as it is known
  std::string head_trouble;                 ///< empty: the head is good
};

/// Opens it and reads its head. A damaged head is no error; Errc::version, or
/// Errc::invalid_argument for a segment of another store or of another number; Errc::not_found,
/// Errc::permission, Errc::io.
[[nodiscard]] Result<SegmentInFile> open_segment_file(const StoreDirectory& directory,
                                                      const StoreDirectory::SegmentFile& where);

}  // namespace vmshadow::store
