// The vocabulary's numbers as distinct types: a page number is never an epoch by accident.
//
// Every type is explicit in both directions (construct with braces, read with `.value`), ordered,
// hashable through its value, and has the size of its integer.
#pragma once

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace vmshadow {

/// Bytes in a target page. QEMU's x86 target pages are 4 KiB whatever the host uses.
inline constexpr std::size_t kPageBytes = 4096;

using ByteSpan = std::span<const std::byte>;
using MutableByteSpan = std::span<std::byte>;

template <class Tag, class Integer>
struct StrongNumber {
  Integer value{};

  constexpr StrongNumber() = default;
  constexpr explicit StrongNumber(Integer v) : value(v) {}
  constexpr auto operator<=>(const StrongNumber&) const = default;
  [[nodiscard]] constexpr StrongNumber next() const {
    return StrongNumber{static_cast<Integer>(value + 1)};
  }
};

/// One consistent cut of a VM. Numbered from 0 per VM, rising for ever, across generations.
using Epoch = StrongNumber<struct EpochTag, std::uint64_t>;
/// A VM's term of ownership. 0 is "none yet"; every attach, failover and failback raises it.
using Generation = StrongNumber<struct GenerationTag, std::uint64_t>;
/// A page inside one RAM block or disk, in units of kPageBytes from its start.
using PageNumber = StrongNumber<struct PageNumberTag, std::uint64_t>;
/// A RAM block's place in its generation's RamLayout, or behind those a disk's among its disks.
using BlockIndex = StrongNumber<struct BlockIndexTag, std::uint16_t>;
/// A journal segment, numbered from 1 per store.
using SegmentId = StrongNumber<struct SegmentIdTag, std::uint64_t>;
/// Bytes from the start of a segment file.
using SegmentOffset = StrongNumber<struct SegmentOffsetTag, std::uint64_t>;

/// A VM's identity on the wire and in the journal: the 128-bit XXH3 of its name (see vm_id()).
struct VmId {
  std::array<std::byte, 16> bytes{};
  auto operator<=>(const VmId&) const = default;
  /// 32 lower-case hex digits.
  [[nodiscard]] std::string hex() const;
};

/// Longest VM name, in bytes.
inline constexpr std::size_t kVmNameBytesMax = 128;

/// True if `name` may name a VM: 1 to kVmNameBytesMax of [A-Za-z0-9._-], not starting with '.' or
/// '-'. (Names become file names and command-line words; libvirt's usual names all pass.)
[[nodiscard]] bool is_valid_vm_name(std::string_view name);

/// The identity that belongs to a name: XXH3-128 of its bytes, big-endian (XXH128_canonical).
[[nodiscard]] VmId vm_id(std::string_view name);

}  // namespace vmshadow
