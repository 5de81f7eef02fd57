// A page_group's body through the codec: all pages at once and one by one must agree, or both
// refuse; what is salvaged of it holds its checksums.
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "base/assert.h"
#include "delta/page_group_codec.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace vmshadow;
  const auto group = format::decode_page_group(std::as_bytes(std::span(data, size)));
  if (!group) return 0;
  // Exactly as large as promised: the sanitizer sees a byte too many.
  std::vector<std::byte> pages(group->page_count * kPageBytes);
  const auto all = delta::decode_pages(*group, pages);
  VMSHADOW_ASSERT(all || all.error().code == Errc::corrupt);
  for (std::size_t slot = 0; slot < group->page_count; ++slot) {
    std::vector<std::byte> page(kPageBytes);
    const auto one = delta::decode_page(*group, slot, page);
    // A single page may be had from a payload that is bad behind it, never the other way round.
    VMSHADOW_ASSERT(one || !all);
    if (all) {
      VMSHADOW_ASSERT(std::memcmp(page.data(), pages.data() + slot * kPageBytes, kPageBytes) == 0);
    }
  }
  // So may some of them, chosen by the input.
  const auto mask = static_cast<std::uint16_t>((1U << group->page_count) - 1);
  const auto wanted = static_cast<std::uint16_t>(group->checksums[0] & mask);
  if (wanted != 0) {
    std::vector<std::byte> some(pages.size());
    const auto decoded = delta::decode_wanted(*group, wanted, some);
    VMSHADOW_ASSERT(decoded || !all);
    for (std::size_t slot = 0; slot < group->page_count && decoded; ++slot) {
      if ((wanted >> slot & 1) == 0) continue;
      const std::byte* const page = some.data() + slot * kPageBytes;
      VMSHADOW_ASSERT(format::page_checksum(page) == group->checksums[slot]);
    }
  }
  // What is salvaged is what decodes.
  std::vector<std::byte> salvaged(pages.size());
  const std::uint16_t whole = delta::salvage_pages(*group, salvaged);
  VMSHADOW_ASSERT(whole >> group->page_count == 0);
  for (std::size_t slot = 0; slot < group->page_count; ++slot) {
    const bool sound = (whole >> slot & 1) != 0;
    VMSHADOW_ASSERT(sound || !all);
    if (!sound) continue;
    const std::byte* const page = salvaged.data() + slot * kPageBytes;
    VMSHADOW_ASSERT(format::page_checksum(page) == group->checksums[slot]);
    VMSHADOW_ASSERT(!all || std::memcmp(page, pages.data() + slot * kPageBytes, kPageBytes) == 0);
  }
  return 0;
}
