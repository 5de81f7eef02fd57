#include "app/replay_reports.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <ctime>

namespace vmshadow::app {
namespace {

using Json = ReportJson;

Json text_or_null(const std::string& text) { return text.empty() ? Json(nullptr) : Json(text); }

Json blocks_json(const RamLayout& layout) {
  Json blocks = Json::array();
  for (const RamBlock& block : layout.blocks) {
    blocks.push_back({{"name", block.name}, {"bytes", block.bytes}, {"pages", block.pages()}});
  }
  return blocks;
}

Json disks_json(const std::vector<Disk>& disks) {
  Json list = Json::array();
  for (const Disk& disk : disks) list.push_back({{"name", disk.name}, {"bytes", disk.bytes}});
  return list;
}

Json machine_json(const MachineDescription& machine,
                  const std::optional<replay::MachineRecord>& record) {
  Json json;
  const replay::MachineRecord known = record.value_or(replay::MachineRecord{});
  json["qemu_version"] = text_or_null(known.qemu_version);
  json["qemu_binary"] = text_or_null(known.qemu_binary);
  json["machine_type"] = text_or_null(known.machine_type);
  json["accelerator"] = text_or_null(known.accelerator);
  json["ram_bytes"] = known.ram_bytes != 0 ? Json(known.ram_bytes) : Json(nullptr);
  json["name"] = text_or_null(known.name);
  json["uuid"] = text_or_null(known.uuid);
  json["cwd"] = text_or_null(known.cwd);
  json["argv"] = known.argv;
  json["readable"] = record.has_value();
  json["configuration_bytes"] = machine.configuration.size();
  json["ram_blocks"] = blocks_json(machine.layout);
  json["ram_blocks_bytes"] = machine.layout.total_bytes();
  json["disks"] = disks_json(machine.disks);
  return json;
}

Json block_diff_json(const replay::BlockDiff& block) {
  Json ranges = Json::array();
  for (const replay::PageRange& range : block.ranges) {
    ranges.push_back(Json::array({range.first.value, range.count}));
  }
  Json json;
  json["name"] = block.name;
  json["kind"] = block.is_disk ? "disk" : "ram";
  json["pages_a"] = block.pages_a;
  json["pages_b"] = block.pages_b;
  json["pages_differing"] = block.pages_differing;
  json["bytes_differing"] = block.bytes_differing ? Json(*block.bytes_differing) : Json(nullptr);
  json["ranges_total"] = block.ranges_total;
  json["ranges"] = std::move(ranges);
  return json;
}

}  // namespace

std::string utc_text(WallTime time) {
  // Floored, so that a time before 1970 is right as well.
  std::int64_t seconds = time.ns / 1'000'000'000;
  if (time.ns % 1'000'000'000 < 0) --seconds;
  const std::int64_t ms = (time.ns - seconds * 1'000'000'000) / 1'000'000;
  return fmt::format("{:%Y-%m-%dT%H:%M:%S}.{:03}Z", fmt::gmtime(static_cast<std::time_t>(seconds)),
                     ms);
}

double seconds_between(WallTime earlier, WallTime later) {
  return static_cast<double>(later.ns - earlier.ns) / 1e9;
}

Json epoch_json(const EpochInfo& info) {
  return {{"epoch", info.epoch.value},
          {"generation", info.generation.value},
          {"full", info.full},
          {"cut", utc_text(info.cut_wall)},
          {"cut_wall_ns", info.cut_wall.ns},
          {"committed", utc_text(info.committed_wall)},
          {"pages", info.pages},
          {"raw_bytes", info.raw_bytes},
          {"stored_bytes", info.stored_bytes},
          {"device_bytes", info.device_bytes},
          {"encrypted", info.encrypted},
          {"pinned", info.pinned},
          {"tier", text_or_null(info.tier)}};
}

Json vm_json(const VmInfo& vm, WallTime now) {
  Json epochs = Json::array();
  Json pins = Json::array();
  for (const EpochInfo& info : vm.epochs) {
    epochs.push_back(epoch_json(info));
    if (info.pinned) pins.push_back(info.epoch.value);
  }
  Json json{{"name", vm.name}, {"id", vm.id.hex()}, {"generation", vm.generation.value}};
  json["age_s"] =
      vm.epochs.empty() ? Json(nullptr) : Json(seconds_between(vm.epochs.back().cut_wall, now));
  json["retention"] = text_or_null(vm.retention);
  json["pins"] = std::move(pins);
  json["epochs"] = std::move(epochs);
  return json;
}

Json show_json(const VmInfo& vm, const EpochInfo& info, const MachineDescription& machine,
               const std::optional<replay::MachineRecord>& record, WallTime now) {
  Json json;
  json["vm"] = vm.name;
  json["id"] = vm.id.hex();
  json.update(epoch_json(info));
  json["committed_wall_ns"] = info.committed_wall.ns;
  json["age_s"] = seconds_between(info.cut_wall, now);
  json["machine"] = machine_json(machine, record);
  return json;
}

Json diff_json(const std::string& vm, const EpochInfo& a, const EpochInfo& b,
               const replay::EpochDiff& diff) {
  Json json;
  json["vm"] = vm;
  json["a"] = epoch_json(a);
  json["b"] = epoch_json(b);
  json["same"] = diff.same();
  json["pages_differing"] = diff.pages_differing();
  Json blocks = Json::array();
  for (const replay::BlockDiff& block : diff.blocks) blocks.push_back(block_diff_json(block));
  json["blocks"] = std::move(blocks);
  json["device_state"]["differs"] = diff.device_differs_at.has_value();
  json["device_state"]["bytes_a"] = diff.device_bytes_a;
  json["device_state"]["bytes_b"] = diff.device_bytes_b;
  json["device_state"]["first_difference"] =
      diff.device_differs_at ? Json(*diff.device_differs_at) : Json(nullptr);
  json["machine_differs"] = diff.machine_differs;
  return json;
}

Json export_json(const std::string& vm, const EpochInfo& info, const std::string& format,
                 const replay::ExportReport& report) {
  Json json;
  json["vm"] = vm;
  json["epoch"] = info.epoch.value;
  json["cut"] = utc_text(info.cut_wall);
  json["format"] = format;
  Json files = Json::array();
  for (const replay::ExportedFile& file : report.files) {
    files.push_back({{"path", file.path}, {"bytes", file.bytes}});
  }
  json["files"] = std::move(files);
  json["pages"] = report.pages;
  json["zero_pages"] = report.zero_pages;
  json["left_out"] = report.left_out;
  return json;
}

Json damage_json(const store::Damage& damage) {
  Json json;
  const bool placed = damage.at.segment.value != 0;  // segments are numbered from 1
  json["file"] = placed ? Json(store::segment_file_name(damage.at.segment)) : Json(nullptr);
  json["offset"] = placed ? Json(damage.at.offset.value) : Json(nullptr);
  json["bytes"] = damage.bytes;
  json["vm"] = text_or_null(damage.vm_name);
  json["epoch"] = damage.epoch ? Json(damage.epoch->value) : Json(nullptr);
  json["what"] = damage.what;
  return json;
}

}  // namespace vmshadow::app
