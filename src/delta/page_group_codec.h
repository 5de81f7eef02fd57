// lz4 over groups of pages: the only place that knows lz4. Pure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include <vmshadow/result.h>
#include <vmshadow/types.h>

#include "format/epoch_records.h"

namespace vmshadow::delta {

/// Appends the body of a page_group record to `out`: the keys, a checksum per page, and the pages
/// (keys.size() * kPageBytes bytes at `pages`) compressed, or raw where lz4 would not make them
/// smaller. An encoder object keeps lz4's scratch state; used by one thread.
class PageGroupEncoder {
 public:
  PageGroupEncoder();
  ~PageGroupEncoder();
  PageGroupEncoder(PageGroupEncoder&&) noexcept;
  /// lz4's: 1 is its default, a higher one trades ratio for speed.
  void set_acceleration(int acceleration);
  void append_body(std::vector<std::byte>& out, std::span<const format::PageKey> keys,
                   const std::byte* pages);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Decodes all pages of a group into `out` (page_count * kPageBytes bytes), in the keys' order.
/// Errc::corrupt if the payload does not decode to exactly that, or a page fails its checksum.
/// Never reads or writes out of bounds whatever the payload.
[[nodiscard]] Status decode_pages(const format::PageGroup& group, MutableByteSpan out);
/// Decodes the pages whose bit is set in `wanted` (at least one; none beyond the group), each to
/// its place in `out` (as for decode_pages()), and checks these alone; what is in the other places
/// then is of no use. Errc::corrupt as decode_pages(), but that damage behind the last of them may
/// not be seen.
[[nodiscard]] Status decode_wanted(const format::PageGroup& group, std::uint16_t wanted,
                                   MutableByteSpan out);
/// What is still whole of a group whose bytes are damaged: bit i says that page i was decoded into
/// `out` (as for decode_pages) and holds its checksum. The other pages there are of no use.
[[nodiscard]] std::uint16_t salvage_pages(const format::PageGroup& group, MutableByteSpan out);
/// Decodes only what is needed for the page at `slot` into `out` (kPageBytes bytes).
[[nodiscard]] Status decode_page(const format::PageGroup& group, std::size_t slot,
                                 MutableByteSpan out);

}  // namespace vmshadow::delta
