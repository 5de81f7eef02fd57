// Whether the files of a directory can be written past the page cache (O_DIRECT), found out by
// doing it: some file systems refuse at open, some at the first write, some want larger blocks than
// ours.
#pragma once

#include <cstdint>
#include <string>

#include <vmshadow/result.h>

#include "base/unique_fd.h"

namespace vmshadow::io {

struct DirectSupport {
  bool works = false;
  std::uint32_t alignment =
      0;                ///< what the kernel asks of offsets and lengths; 0 if it does not say
  std::string why_not;  ///< for the log, if it does not work
};

/// Writes one block to a file without a name in `directory` (or one that is removed at once).
[[nodiscard]] DirectSupport probe_direct_writes(const std::string& directory);

}  // namespace vmshadow::io
