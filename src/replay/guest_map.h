// Where a PC's RAM blocks lie in the guest's physical address space. Pure.
//
//   0 ── main RAM ── below-4G limit ── PCI hole ── pc.bios ┤4 GiB├── the rest of main RAM ──
//
// The limit is QEMU's (hw/i386/pc_piix.c, pc_q35.c; held against `info mtree` by the e2e test):
//   i440fx   all RAM below 3.5 GiB; from there on 3 GiB (machine types up to 1.7: 3.5 GiB)
//   q35      all RAM below 2.75 GiB; from there on 2 GiB
// and never above what -machine max-ram-below-4g says. Blocks whose place the guest decides (video
// memory behind a PCI BAR) or that are no memory of its own (ACPI tables read through fw_cfg) have
// no address that the description could tell.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <vmshadow/machine.h>
#include <vmshadow/result.h>

#include "replay/machine_record.h"

namespace vmshadow::replay {

struct GuestRange {
  std::uint64_t guest_address{};
  std::uint64_t bytes{};
  BlockIndex block;
  std::uint64_t block_offset{};
  bool operator==(const GuestRange&) const = default;
};

struct GuestMap {
  std::vector<GuestRange> ranges;     ///< by address; they do not overlap
  std::vector<std::string> unmapped;  ///< blocks whose address is not known
};

/// Errc::unsupported says what about the machine is not a PC with all its RAM in one block.
[[nodiscard]] Result<GuestMap> guest_physical_map(const MachineRecord& record,
                                                  const RamLayout& layout);

}  // namespace vmshadow::replay
