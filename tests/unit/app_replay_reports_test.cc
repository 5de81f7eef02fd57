// The shapes of shadow-replay's --json, held against golden files: scripts rely on them. Keys may
// be added (then add them to the file), never renamed or dropped.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>

#include "app/replay_reports.h"

namespace vmshadow::app {
namespace {

std::string golden(const std::string& name) {
  const std::string path =
      std::string(VMSHADOW_SOURCE_ROOT) + "/tests/unit/golden/replay-json/" + name;
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file) << path;
  return {std::istreambuf_iterator<char>(file), {}};
}

void expect_golden(const ReportJson& json, const std::string& name) {
  EXPECT_EQ(json.dump(2) + "\n", golden(name)) << name;
}

constexpr WallTime kCut{1'795'000'003'250'000'000};
constexpr WallTime kCommitted{1'795'000'003'300'000'000};
constexpr WallTime kNow{1'795'000'013'250'000'000};

EpochInfo epoch(std::uint64_t number) {
  EpochInfo info;
  info.epoch = Epoch{number};
  info.generation = Generation{3};
  info.full = number == 7;
  info.cut_wall = kCut;
  info.committed_wall = kCommitted;
  info.pages = 200;
  info.raw_bytes = 200 * kPageBytes;
  info.stored_bytes = 300'000;
  info.device_bytes = 33'000;
  return info;
}

VmInfo web1() {
  VmInfo vm;
  vm.name = "web1";
  vm.id = vm_id("web1");
  vm.generation = Generation{3};
  vm.epochs = {epoch(7), epoch(12)};
  return vm;
}

TEST(ReplayReportsTest, ListOfAStoreWithoutTiersOrPins) {
  expect_golden(vm_json(web1(), kNow), "list_vm_plain.json");
}

TEST(ReplayReportsTest, ListWithTiersPinsAndRetention) {
  VmInfo vm = web1();
  vm.retention = "window=10m";
  vm.epochs[0].pinned = true;
  vm.epochs[0].tier = "hdd";
  vm.epochs[1].tier = "ssd";
  expect_golden(vm_json(vm, kNow), "list_vm.json");
}

MachineDescription machine() {
  MachineDescription description;
  description.configuration.assign(20, std::byte{});
  description.layout.blocks = {{"pc.ram", 64 << 20}, {"pc.bios", 256 << 10}};
  return description;
}

TEST(ReplayReportsTest, ShowOfAnEpoch) {
  replay::MachineRecord record;
  record.qemu_version = "7.2.22";
  record.qemu_binary = "/usr/bin/qemu-system-x86_64";
  record.machine_type = "pc-i440fx-7.2";
  record.accelerator = "kvm";
  record.ram_bytes = 64 << 20;
  record.argv = {"qemu-system-x86_64", "-m", "64"};
  record.cwd = "/";
  expect_golden(show_json(web1(), epoch(12), machine(), record, kNow), "show.json");
}

TEST(ReplayReportsTest, ShowOfAMachineThatCannotBeRead) {
  expect_golden(show_json(web1(), epoch(12), machine(), std::nullopt, kNow),
                "show_unreadable_machine.json");
}

TEST(ReplayReportsTest, Diff) {
  replay::EpochDiff diff;
  replay::BlockDiff ram;
  ram.name = "pc.ram";
  ram.pages_a = ram.pages_b = 16384;
  ram.pages_differing = 3;
  ram.bytes_differing = 100;
  ram.ranges = {{PageNumber{5}, 2}, {PageNumber{9}, 1}};
  ram.ranges_total = 2;
  diff.blocks = {ram};
  diff.device_bytes_a = 33'000;
  diff.device_bytes_b = 33'001;
  diff.device_differs_at = 17;
  expect_golden(diff_json("web1", epoch(7), epoch(12), diff), "diff.json");
  const replay::EpochDiff none;
  const auto json = diff_json("web1", epoch(7), epoch(7), none);
  EXPECT_EQ(json["same"], true);
  EXPECT_TRUE(json["device_state"]["first_difference"].is_null());
}

TEST(ReplayReportsTest, Export) {
  replay::ExportReport report;
  report.files = {{"/srv/web1.core", 67'117'056}};
  report.pages = 12'000;
  report.zero_pages = 4'384;
  report.left_out = {"vga.vram"};
  expect_golden(export_json("web1", epoch(12), "elf", report), "export.json");
}

TEST(ReplayReportsTest, Damage) {
  store::Damage damage;
  damage.at = {SegmentId{1}, SegmentOffset{4096}};
  damage.bytes = 500;
  damage.what = "record body fails its checksum";
  damage.vm_name = "web1";
  damage.epoch = Epoch{7};
  expect_golden(damage_json(damage), "damage.json");
  const auto unplaced = damage_json(store::Damage{});
  for (const char* key : {"file", "offset", "vm", "epoch"}) {
    EXPECT_TRUE(unplaced[key].is_null()) << key;
  }
}

TEST(ReplayReportsTest, TimesAreUtcWithMilliseconds) {
  EXPECT_EQ(utc_text(WallTime{0}), "1970-01-01T00:00:00.000Z");
  EXPECT_EQ(utc_text(WallTime{-1'000'000}), "1969-12-31T23:59:59.999Z");
  EXPECT_EQ(utc_text(kCut), "2026-11-18T11:06:43.250Z");
}

}  // namespace
}  // namespace vmshadow::app
