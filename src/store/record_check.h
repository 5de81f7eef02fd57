// Whether a record that passes its checksum also decodes to what it claims to hold.
#pragma once

#include <cstddef>
#include <vector>

#include <vmshadow/result.h>

#include "store/segment_scanner.h"

namespace vmshadow::store {

/// Where pages are decoded to; used again and again.
using PageScratch = std::vector<std::byte>;

/// Pages that a store gave up as lost (format::Codec::lost).
enum class LostPages {
  refused,   ///< as damage that says so
  accepted,  ///< they are what they claim to be
};

/// Decodes a page_group and checks each page against its checksum; others pass, sealed ones too.
/// Errc::corrupt.
[[nodiscard]] Status check_decodes(const GoodRecord& record, LostPages lost, PageScratch& scratch);

}  // namespace vmshadow::store
