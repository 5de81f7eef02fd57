#include "delta/page_group_codec.h"

#include <fmt/format.h>
#include <lz4.h>

#include <algorithm>
#include <array>
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

// The block format forbids a match at distance 0, but liblz4 1.9 decodes one as "what was in the
// output before": our memory would end up in a guest's page. Everything else it checks itself.
// (lz4_Block_format.md)
bool distances_are_valid(ByteSpan rest) {
  while (!rest.empty()) {
    const auto token = static_cast<std::size_t>(rest.front());
    rest = rest.subspan(1);
    std::size_t length = 0;
    if (!read_length(rest, token >> 4, length) || length > rest.size()) return false;
    rest = rest.subspan(length);
    if (rest.empty()) return true;  // the last sequence has literals alone
    if (rest.size() < 2 || load<le16>(rest.data()) == 0) return false;
    rest = rest.subspan(2);
    if (!read_length(rest, token & 15, length)) return false;
  }
  return false;
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

Status decode_payload(const format::PageGroup& group, MutableByteSpan out) {
  if (group.codec == format::Codec::lost) return lost(group);
  if (group.codec == format::Codec::raw) {
    if (group.payload.size() != out.size()) return undecodable(group);
    std::memcpy(out.data(), group.payload.data(), out.size());
    return {};
  }
  if (!distances_are_valid(group.payload)) return undecodable(group);
  const int decoded =
      LZ4_decompress_safe(chars(group.payload.data()), chars(out.data()),
                          static_cast<int>(group.payload.size()), static_cast<int>(out.size()));
  if (decoded < 0 || static_cast<std::size_t>(decoded) != out.size()) return undecodable(group);
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
  if (group.codec == format::Codec::lost) return lost(group);
  if (group.codec == format::Codec::raw) {
    if (group.payload.size() != group.page_count * kPageBytes) return undecodable(group);
    std::memcpy(out.data(), group.payload.data() + slot * kPageBytes, kPageBytes);
    return check_page(group, slot, out.data());
  }
  if (!distances_are_valid(group.payload)) return undecodable(group);
  // lz4 refers back up to 64 KiB, so the pages before this one must be decoded, those behind not.
  std::array<std::byte, kGroupBytesMax> before;
  const std::size_t needed = (slot + 1) * kPageBytes;
  std::byte* const into = slot == 0 ? out.data() : before.data();
  const int decoded = LZ4_decompress_safe_partial(
      chars(group.payload.data()), chars(into), static_cast<int>(group.payload.size()),
      static_cast<int>(needed), static_cast<int>(needed));
  if (decoded < 0 || static_cast<std::size_t>(decoded) < needed) return undecodable(group);
  if (slot != 0) std::memcpy(out.data(), before.data() + slot * kPageBytes, kPageBytes);
  return check_page(group, slot, out.data());
}

}  // namespace vmshadow::delta
