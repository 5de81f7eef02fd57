// What must be known about a VM besides its pages, to put it back: its RAM blocks and protected
// disks, the head of its migration stream, and how its QEMU was started. Constant for one
// generation.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <vmshadow/types.h>

namespace vmshadow {

/// Limits that hold for what a peer or a disk may claim.
inline constexpr std::size_t kRamBlocksMax = 1024;
inline constexpr std::size_t kRamBlockNameBytesMax = 255;
inline constexpr std::uint64_t kRamBlockBytesMax = std::uint64_t{1} << 46;  // 64 TiB
inline constexpr std::size_t kDiskNameBytesMax = 255;
inline constexpr std::uint64_t kDiskBytesMax = std::uint64_t{1} << 46;
inline constexpr std::uint64_t kDiskSectorBytes = 512;
/// RAM blocks and disks together.
inline constexpr std::size_t kBlocksMax = kRamBlocksMax;
inline constexpr std::size_t kMachineTextBytesMax = std::size_t{1} << 20;
inline constexpr std::size_t kConfigurationBytesMax = 64 * 1024;
inline constexpr std::uint64_t kDeviceStateBytesMax = std::uint64_t{1} << 30;

struct RamBlock {
  std::string name;       ///< QEMU's idstr, e.g. "pc.ram"; unique in a layout
  std::uint64_t bytes{};  ///< used length; a multiple of kPageBytes
  bool operator==(const RamBlock&) const = default;
  [[nodiscard]] std::uint64_t pages() const { return bytes / kPageBytes; }
};

/// The RAM blocks in stream order, and the numbers QEMU gave the `ram` section.
struct RamLayout {
  std::vector<RamBlock> blocks;
  std::uint32_t ram_section_id{};
  std::uint32_t ram_section_instance{};
  std::uint32_t ram_section_version{};
  bool operator==(const RamLayout&) const = default;
  [[nodiscard]] std::uint64_t total_bytes() const {
    std::uint64_t sum = 0;
    for (const auto& block : blocks) sum += block.bytes;
    return sum;
  }
};

/// A protected disk.
struct Disk {
  std::string name;       ///< what the guest's device is called; unique among the disks
  std::uint64_t bytes{};  ///< whole sectors
  bool operator==(const Disk&) const = default;
  /// The last one may lie beyond the end in part; there it is zero.
  [[nodiscard]] std::uint64_t pages() const { return (bytes + kPageBytes - 1) / kPageBytes; }
};

/// How to start a QEMU that can take this VM's state.
struct MachineDescription {
  /// JSON text with the keys docs/store-format.md lists (qemu binary and version, machine type,
  /// accelerator, argv, cwd, RAM bytes). Kept as text: stages in between only carry it.
  std::string json;
  /// The body of the stream's CONFIGURATION section after the 0x07 byte: be32 length, machine name,
  /// then its subsections, as QEMU sent it.
  std::vector<std::byte> configuration;
  RamLayout layout;
  std::vector<Disk> disks;
  bool operator==(const MachineDescription&) const = default;

  /// What a page's BlockIndex names: the RAM blocks come first, then the disks.
  struct Block {
    std::string_view name;
    std::uint64_t bytes{};
    std::uint64_t pages{};
    bool is_disk{};
  };
  [[nodiscard]] std::size_t block_count() const { return layout.blocks.size() + disks.size(); }
  /// Of one below block_count().
  [[nodiscard]] Block block(BlockIndex index) const {
    const std::size_t ram_blocks = layout.blocks.size();
    if (index.value < ram_blocks) {
      const RamBlock& ram = layout.blocks[index.value];
      return {ram.name, ram.bytes, ram.pages(), false};
    }
    const Disk& disk = disks[index.value - ram_blocks];
    return {disk.name, disk.bytes, disk.pages(), true};
  }
  [[nodiscard]] std::uint64_t total_pages() const {
    std::uint64_t sum = layout.total_bytes() / kPageBytes;
    for (const Disk& disk : disks) sum += disk.pages();
    return sum;
  }
};

}  // namespace vmshadow
