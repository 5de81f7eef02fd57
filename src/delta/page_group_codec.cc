#include "delta/page_group_codec.h"

#include <fmt/format.h>
#include <lz4.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <string>

#include "base/assert.h"
#include "base/endian.h"
#include "format/record.h"

namespace vmshadow::delta {
namespace {

constexpr std::size_t kGroupBytesMax = format::kGroupPagesMax * kPageBytes;
// Blocks of at most 64 KiB let lz4 use 16-bit offsets in its table: a larger group would be slower.
static_assert(kGroupBytesMax <= 64 * 1024);

const char* chars(const std::byte* bytes) { return reinterpret_cast<const char*>(bytes); }
char* chars(std::byte* bytes) { return reinterpret_cast<char*>(bytes); }

tl::unexpected<Error> undecodable(const format::PageGroup& group) {
  return fail(Errc::corrupt,
              fmt::format("page_group's {} bytes of payload do not decode to its {} pages",
                          group.payload.size(), group.page_count));
}

tl::unexpected<Error> lost(const format::PageGroup& group) {
  std::string text(chars(group.payload.data()), group.payload.size());
  // It comes from a disk or a peer and goes to a terminal.
  std::replace_if(
      text.begin(), text.end(),
      [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; }, '?');
  return fail(Errc::corrupt, fmt::format("the pages were lost to damage: {}", text));
}

/// Reads an lz4 length: `nibble`, and if that is 15 the bytes behind it, the last of which is not
/// 255.
bool read_length(ByteSpan& rest, std::size_t nibble, std::size_t& length) {
  length = nibble;
  if (nibble != 15) return true;
  for (;;) {
    if (rest.empty()) return false;
    const auto more = static_cast<std::size_t>(rest.front());
    rest = rest.subspan(1);
    length += more;
    if (more != 255) return true;
  }
}

/// Decodes an lz4 block that may be damaged up to where it makes no sense any more: liblz4 would
/// not say how far it came. A changed literal does not end it. (lz4_Block_format.md)
void decode_while_valid(ByteSpan rest, MutableByteSpan out) {
  constexpr std::size_t match_bytes_min = 4;
  std::size_t at = 0;
  while (!rest.empty()) {
    const auto token = static_cast<std::size_t>(rest.front());
    rest = rest.subspan(1);
    std::size_t length = 0;
    if (!read_length(rest, token >> 4, length)) return;
    const std::size_t literals = std::min({length, rest.size(), out.size() - at});
    std::copy_n(rest.begin(), literals, out.begin() + static_cast<std::ptrdiff_t>(at));
    at += literals;
    if (literals < length) return;
    rest = rest.subspan(literals);
    if (rest.size() < sizeof(le16)) return;
    const std::size_t distance = load<le16>(rest.data());
    rest = rest.subspan(sizeof(le16));
    if (distance == 0 || distance > at || !read_length(rest, token & 15, length)) return;
    length = std::min(length + match_bytes_min, out.size() - at);
    for (std::size_t i = 0; i < length; ++i, ++at) out[at] = out[at - distance];
  }
}

}  // namespace

struct PageGroupEncoder::State {
  int acceleration = 1;
  alignas(64) std::array<std::byte, sizeof(LZ4_stream_t)> lz4;
  // Large enough for any outcome: lz4 is faster when it need not watch the end of its output.
  std::array<std::byte, LZ4_COMPRESSBOUND(kGroupBytesMax)> compressed;
};

PageGroupEncoder::PageGroupEncoder() : state_(std::make_unique<State>()) {
  VMSHADOW_ASSERT(static_cast<std::size_t>(LZ4_sizeofState()) <= state_->lz4.size());
}
PageGroupEncoder::~PageGroupEncoder() = default;
PageGroupEncoder::PageGroupEncoder(PageGroupEncoder&&) noexcept = default;

void PageGroupEncoder::set_acceleration(int acceleration) {
  VMSHADOW_ASSERT(acceleration >= 1);
  state_->acceleration = acceleration;
}

void PageGroupEncoder::append_body(std::vector<std::byte>& out,
                                   std::span<const format::PageKey> keys, const std::byte* pages) {
  VMSHADOW_ASSERT(!keys.empty() && keys.size() <= format::kGroupPagesMax);
  const ByteSpan raw(pages, keys.size() * kPageBytes);
  const int written =
      LZ4_compress_fast_extState(state_->lz4.data(), chars(raw.data()),
                                 chars(state_->compressed.data()), static_cast<int>(raw.size()),
                                 static_cast<int>(state_->compressed.size()), state_->acceleration);
  VMSHADOW_ASSERT(written > 0);
  const auto compressed_bytes = static_cast<std::size_t>(written);
  const bool smaller = compressed_bytes < raw.size();
  const ByteSpan payload = smaller ? ByteSpan(state_->compressed).first(compressed_bytes) : raw;

  std::array<std::uint64_t, format::kGroupPagesMax> checksums;
  for (std::size_t i = 0; i < keys.size(); ++i) {
    checksums[i] = format::page_checksum(pages + i * kPageBytes);
  }
  format::append_page_group_body(out, smaller ? format::Codec::lz4 : format::Codec::raw, keys,
                                 std::span(checksums).first(keys.size()), payload);
}

namespace {

Status check_page(const format::PageGroup& group, std::size_t slot, const std::byte* page) {
  if (format::page_checksum(page) == group.checksums[slot]) return {};
  return fail(Errc::corrupt,
              fmt::format("page {} of block {} is not what was captured (its "
                          "checksum differs)",
                          group.keys[slot].page.value, group.keys[slot].block.value));
}

/// The first `out.size()` bytes that the payload decodes to, and if these are all, no more than
/// that.
Status decode_payload(const format::PageGroup& group, MutableByteSpan out) {
  if (group.codec == format::Codec::lost) return lost(group);
  const std::size_t all = group.page_count * kPageBytes;
  if (group.codec == format::Codec::raw) {
    if (group.payload.size() != all) return undecodable(group);
    std::memcpy(out.data(), group.payload.data(), out.size());
    return {};
  }
  // The block format forbids a match at distance 0, but liblz4 1.9 decodes one as "what was in the
  // output before" (everything else it checks itself). That shall not be our memory in a guest's
  // page; that it is not the page either, its checksum says. (lz4_Block_format.md)
  std::memset(out.data(), 0, out.size());
  const auto payload_bytes = static_cast<int>(group.payload.size());
  const auto bytes = static_cast<int>(out.size());
  const int decoded =
      out.size() == all
          ? LZ4_decompress_safe(chars(group.payload.data()), chars(out.data()), payload_bytes,
                                bytes)
          : LZ4_decompress_safe_partial(chars(group.payload.data()), chars(out.data()),
                                        payload_bytes, bytes, bytes);
  if (decoded != bytes) return undecodable(group);
  return {};
}

}  // namespace

Status decode_pages(const format::PageGroup& group, MutableByteSpan out) {
  VMSHADOW_ASSERT(group.page_count <= format::kGroupPagesMax);
  VMSHADOW_ASSERT(out.size() == group.page_count * kPageBytes);
  VMSHADOW_TRY(decode_payload(group, out));
  for (std::size_t i = 0; i < group.page_count; ++i) {
    VMSHADOW_TRY(check_page(group, i, out.data() + i * kPageBytes));
  }
  return {};
}

Status decode_wanted(const format::PageGroup& group, std::uint16_t wanted, MutableByteSpan out) {
  VMSHADOW_ASSERT(group.page_count <= format::kGroupPagesMax);
  VMSHADOW_ASSERT(wanted != 0 && wanted >> group.page_count == 0);
  VMSHADOW_ASSERT(out.size() == group.page_count * kPageBytes);
  // lz4 refers back up to 64 KiB: the pages before the last one must be decoded, those behind not.
  const auto needed = static_cast<std::size_t>(std::bit_width(wanted));
  VMSHADOW_TRY(decode_payload(group, out.first(needed * kPageBytes)));
  for (std::size_t i = 0; i < needed; ++i) {
    if ((wanted >> i & 1) != 0) VMSHADOW_TRY(check_page(group, i, out.data() + i * kPageBytes));
  }
  return {};
}

std::uint16_t salvage_pages(const format::PageGroup& group, MutableByteSpan out) {
  VMSHADOW_ASSERT(group.page_count <= format::kGroupPagesMax);
  VMSHADOW_ASSERT(out.size() == group.page_count * kPageBytes);
  if (group.codec == format::Codec::lost) return 0;
  std::fill(out.begin(), out.end(), std::byte{});
  if (group.codec == format::Codec::lz4) {
    decode_while_valid(group.payload, out);
  } else {
    std::copy_n(group.payload.begin(), std::min(group.payload.size(), out.size()), out.begin());
  }
  std::uint16_t whole = 0;
  for (std::size_t slot = 0; slot < group.page_count; ++slot) {
    if (!check_page(group, slot, out.data() + slot * kPageBytes)) continue;
    whole = static_cast<std::uint16_t>(whole | 1u << slot);
  }
  return whole;
}

Status decode_page(const format::PageGroup& group, std::size_t slot, MutableByteSpan out) {
  VMSHADOW_ASSERT(group.page_count <= format::kGroupPagesMax && slot < group.page_count);
  VMSHADOW_ASSERT(out.size() == kPageBytes);
  std::array<std::byte, kGroupBytesMax> before;
  const MutableByteSpan into = slot == 0 ? out : MutableByteSpan(before);
  VMSHADOW_TRY(decode_payload(group, into.first((slot + 1) * kPageBytes)));
  if (slot != 0) std::memcpy(out.data(), before.data() + slot * kPageBytes, kPageBytes);
  return check_page(group, slot, out.data());
}

}  // namespace vmshadow::delta
