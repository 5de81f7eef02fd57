// The memory map of a PC. Values are those of QEMU 7.2's own `info mtree`; export_e2e_test asks it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "replay/guest_map.h"

namespace vmshadow::replay {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
constexpr std::uint64_t kMiB = 1 << 20;
constexpr std::uint64_t kFourGiB = std::uint64_t{1} << 32;

RamLayout layout(std::uint64_t ram_mib, const std::string& name = "pc.ram") {
  RamLayout result;
  result.blocks = {{name, ram_mib * kMiB}, {"vga.vram", 16 * kMiB}, {"pc.bios", 256 * 1024}};
  return result;
}

MachineRecord machine(const std::string& type, std::vector<std::string> argv = {}) {
  MachineRecord record;
  record.machine_type = type;
  record.argv = std::move(argv);
  return record;
}

/// Bytes of main RAM from address 0; the rest must lie from 4 GiB on.
std::uint64_t below(const MachineRecord& record, std::uint64_t ram_mib) {
  const auto map = guest_physical_map(record, layout(ram_mib));
  EXPECT_TRUE(map) << map.error().message;
  if (!map) return 0;
  EXPECT_EQ(map->ranges.front().guest_address, 0u);
  EXPECT_EQ(map->ranges.front().block_offset, 0u);
  const std::uint64_t low = map->ranges.front().bytes;
  const GuestRange& last = map->ranges.back();
  if (low < ram_mib * kMiB) {
    EXPECT_EQ(last, (GuestRange{kFourGiB, ram_mib * kMiB - low, BlockIndex{0}, low}));
  } else {
    EXPECT_LT(last.guest_address, kFourGiB);
  }
  return low / kMiB;
}

TEST(GuestMapTest, RamIsSplitWhereQemuSplitsIt) {
  const auto i440fx = machine("pc-i440fx-7.2");
  EXPECT_EQ(below(i440fx, 64), 64u);
  EXPECT_EQ(below(i440fx, 3583), 3583u);
  EXPECT_EQ(below(i440fx, 3584), 3072u);
  EXPECT_EQ(below(i440fx, 6144), 3072u);
  const auto old = machine("pc-i440fx-1.7");
  EXPECT_EQ(below(old, 3584), 3584u);
  EXPECT_EQ(below(old, 6144), 3584u);
  const auto q35 = machine("pc-q35-7.2");
  EXPECT_EQ(below(q35, 2815), 2815u);
  EXPECT_EQ(below(q35, 2816), 2048u);
  EXPECT_EQ(below(q35, 6144), 2048u);
}

TEST(GuestMapTest, MaxRamBelow4gOfTheCommandLineCounts) {
  EXPECT_EQ(below(machine("pc-i440fx-7.2", {"qemu", "-machine", "pc,max-ram-below-4g=1G"}), 1024),
            1024u);
  EXPECT_EQ(below(machine("pc-i440fx-7.2", {"qemu", "-M", "max-ram-below-4g=1G,usb=off"}), 2815),
            1024u);
  EXPECT_EQ(below(machine("pc-q35-7.2", {"qemu", "-machine", "q35,max-ram-below-4g=1024M"}), 2815),
            1024u);
  EXPECT_EQ(below(machine("pc-q35-7.2", {"qemu", "-machine", "q35,max-ram-below-4g=4G"}), 2815),
            2815u);
  const auto unreadable = guest_physical_map(
      machine("pc-q35-7.2", {"qemu", "-machine", "q35,max-ram-below-4g=lots"}), layout(64));
  ASSERT_FALSE(unreadable);
  EXPECT_EQ(unreadable.error().code, Errc::unsupported);
  EXPECT_THAT(unreadable.error().message, HasSubstr("max-ram-below-4g=lots"));
}

TEST(GuestMapTest, TheFirmwareEndsAt4GiBAndVideoMemoryIsLeftOut) {
  const auto map = guest_physical_map(machine("pc-i440fx-7.2"), layout(64));
  ASSERT_TRUE(map) << map.error().message;
  EXPECT_THAT(map->ranges,
              ElementsAre(GuestRange{0, 64 * kMiB, BlockIndex{0}, 0},
                          GuestRange{kFourGiB - 256 * 1024, 256 * 1024, BlockIndex{2}, 0}));
  EXPECT_THAT(map->unmapped, ElementsAre("vga.vram"));
}

TEST(GuestMapTest, MainRamIsTheBackendTheCommandLineNames) {
  const auto record = machine("pc-q35-7.2", {"qemu", "-machine", "q35,memory-backend=mem"});
  for (const char* name : {"mem", "/objects/mem"}) {
    EXPECT_TRUE(guest_physical_map(record, layout(64, name))) << name;
  }
  const auto other = guest_physical_map(record, layout(64));
  ASSERT_FALSE(other);
  EXPECT_THAT(other.error().message, HasSubstr("not one block 'mem'"));
  const auto numa = guest_physical_map(machine("pc-q35-7.2"), layout(64, "ram-node0"));
  ASSERT_FALSE(numa);
  EXPECT_EQ(numa.error().code, Errc::unsupported);
  EXPECT_THAT(numa.error().message, HasSubstr("--format raw"));
}

TEST(GuestMapTest, WhatIsNoPcIsRefused) {
  for (const char* type : {"", "microvm", "virt-7.2", "isapc"}) {
    const auto map = guest_physical_map(machine(type), layout(64));
    ASSERT_FALSE(map) << type;
    EXPECT_EQ(map.error().code, Errc::unsupported);
    EXPECT_THAT(map.error().message, HasSubstr("--format raw"));
  }
  EXPECT_FALSE(guest_physical_map(machine("pc-q35-7.2"), layout(1024 * 1024)));
}

}  // namespace
}  // namespace vmshadow::replay
