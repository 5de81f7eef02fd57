// Bodies of the records that make up an epoch: machine, page_group, zero_pages, device_state (whose
// body is the bytes themselves) and epoch_end.
#pragma once

#include <cstdint>
#include <vector>

#include <vmshadow/clock.h>
#include <vmshadow/machine.h>
#include <vmshadow/result.h>
#include <vmshadow/types.h>

#include "format/record.h"

namespace vmshadow::format {

/// Pages compressed together. 16 pages (64 KiB) is where lz4's ratio levels off while one page
/// still costs only one small read and about 20 µs of decoding.
inline constexpr std::size_t kGroupPagesMax = 16;
/// Device state travels in pieces of at most this.
inline constexpr std::size_t kDeviceStatePieceBytes = std::size_t{1} << 20;

enum class Codec : std::uint8_t {
  raw = 0,  ///< payload is the pages, one after the other
  lz4 = 1,  ///< payload is one lz4 block that decodes to the pages, one after the other
  /// Made by a store alone, for pages whose record was found damaged when it should have been
  /// moved: payload is a sentence that says where and how, at most kLostTextBytesMax long. The
  /// checksums are 0.
  lost = 2,
};

/// A page's place: block in the upper 16 bits, page number in the lower 48.
struct PageKey {
  BlockIndex block;
  PageNumber page;
  auto operator<=>(const PageKey&) const = default;
  [[nodiscard]] std::uint64_t packed() const {
    return (static_cast<std::uint64_t>(block.value) << 48) | page.value;
  }
  [[nodiscard]] static PageKey unpack(std::uint64_t packed) {
    return PageKey{BlockIndex{static_cast<std::uint16_t>(packed >> 48)},
                   PageNumber{packed & ((std::uint64_t{1} << 48) - 1)}};
  }
};

/// page_group: this, then page_count packed keys (le64, distinct), then page_count page checksums
/// (le64), then payload_bytes of payload.
struct PageGroupHeadBytes {
  le16 page_count;  ///< 1 … kGroupPagesMax
  std::uint8_t codec;
  std::uint8_t reserved;  ///< 0, checked
  le32 payload_bytes;
};
static_assert(sizeof(PageGroupHeadBytes) == 8);

/// A decoded page_group. `payload` points into the body it was decoded from.
struct PageGroup {
  Codec codec{};
  std::array<PageKey, kGroupPagesMax> keys{};
  /// page_checksum() of each page as captured: follows the page through recompression to its guest.
  std::array<std::uint64_t, kGroupPagesMax> checksums{};
  std::size_t page_count{};
  /// Bit i: page i no longer counts. Of a sealed group alone: one that was moved without its key.
  std::uint16_t dead_pages{};
  ByteSpan payload;
};
[[nodiscard]] Result<PageGroup> decode_page_group(ByteSpan body);
/// Head and keys alone, from the front of a body (as a skeleton keeps it); no checksums, no
/// payload.
[[nodiscard]] Result<PageGroup> decode_page_group_keys(ByteSpan front);
/// How many bytes of a page_group's body its head and keys take.
[[nodiscard]] constexpr std::size_t page_group_keys_bytes(std::size_t page_count) {
  return sizeof(PageGroupHeadBytes) + page_count * sizeof(le64);
}
/// The checksum of one page's kPageBytes bytes.
[[nodiscard]] std::uint64_t page_checksum(const std::byte* page);
/// The sentence of Codec::lost is cut at kLostTextBytesMax.
void append_page_group_body(std::vector<std::byte>& out, Codec codec, std::span<const PageKey> keys,
                            std::span<const std::uint64_t> checksums, ByteSpan payload);

/// zero_pages: this, then run_count runs.
struct ZeroPagesHeadBytes {
  le32 run_count;  ///< at least 1
  le32 reserved;   ///< 0, checked
};
struct ZeroRunBytes {
  le64 first;  ///< packed key
  le64 count;  ///< at least 1; stays inside the key's block
};
static_assert(sizeof(ZeroPagesHeadBytes) == 8 && sizeof(ZeroRunBytes) == 16);
inline constexpr std::size_t kZeroRunsMax =
    (kRecordBodyBytesMax - sizeof(ZeroPagesHeadBytes)) / sizeof(ZeroRunBytes);

struct ZeroRun {
  PageKey first;
  std::uint64_t count{};
};
void append_zero_pages_body(std::vector<std::byte>& out, std::span<const ZeroRun> runs);
[[nodiscard]] Result<std::vector<ZeroRun>> decode_zero_pages(ByteSpan body);

/// machine: head, configuration bytes, JSON text, then per block, disks last: le16 name length,
/// le16 kind (0 RAM, 1 disk), le64 bytes, name.
struct MachineHeadBytes {
  le32 json_bytes;
  le32 configuration_bytes;
  le32 block_count;
  le32 ram_section_id;
  le32 ram_section_instance;
  le32 ram_section_version;
};
static_assert(sizeof(MachineHeadBytes) == 24);
void append_machine_body(std::vector<std::byte>& out, const MachineDescription& machine);
[[nodiscard]] Result<MachineDescription> decode_machine(ByteSpan body);

/// epoch_end.
struct EpochEndBytes {
  le32 record_count;  ///< records before this one
  le32 flags;         ///< bit 0: full; others 0, checked
  le64 chain;         ///< extend_chain() over the records before this one
  le64 cut_wall_ns;
  le64 captured_pages;  ///< page records that QEMU sent
  le64 stored_pages;    ///< pages in page_group and zero_pages records
  le64 zero_pages;      ///< of those, in zero_pages records
  le64 record_bytes;    ///< prefixes and bodies before this record
  le64 device_bytes;
};
static_assert(sizeof(EpochEndBytes) == 64);

struct EpochSummary {
  std::uint32_t record_count{};
  bool full{};
  std::uint64_t chain{};
  WallTime cut_wall;
  std::uint64_t captured_pages{};
  std::uint64_t stored_pages{};
  std::uint64_t zero_pages{};
  std::uint64_t record_bytes{};
  std::uint64_t device_bytes{};
  bool operator==(const EpochSummary&) const = default;
};
void append_epoch_end_body(std::vector<std::byte>& out, const EpochSummary& summary);
[[nodiscard]] Result<EpochSummary> decode_epoch_end(ByteSpan body);

}  // namespace vmshadow::format
