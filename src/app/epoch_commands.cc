// show, diff and export: what is in an epoch, for people and for other programs.
#include <fmt/format.h>
#include <signal.h>

#include <algorithm>
#include <array>
#include <optional>
#include <string_view>

#include <vmshadow/clock.h>

#include "app/progress_bar.h"
#include "app/replay_commands.h"
#include "app/replay_reports.h"
#include "app/stop_signal.h"
#include "replay/epoch_diff.h"
#include "replay/exporter.h"
#include "replay/machine_record.h"
#include "replay/qemu_command.h"
#include "store/reader.h"

namespace vmshadow::app {
namespace {

struct FormatName {
  std::string_view name;
  replay::ExportFormat format;
};
constexpr std::array<FormatName, 3> kFormats{{{"raw", replay::ExportFormat::raw},
                                              {"elf", replay::ExportFormat::elf},
                                              {"migration", replay::ExportFormat::migration}}};

Result<replay::ExportFormat> parse_format(std::string_view text) {
  for (const FormatName& known : kFormats) {
    if (known.name == text) return known.format;
  }
  return fail(Errc::invalid_argument,
              fmt::format("--format: '{}' is none of raw, elf, migration", text));
}

std::string or_unknown(const std::string& text) { return text.empty() ? "not recorded" : text; }

void print_shown(const VmInfo& vm, const EpochInfo& info, const MachineDescription& machine,
                 const std::optional<replay::MachineRecord>& record) {
  const auto line = [](const char* what, const std::string& value) {
    fmt::print("{:<14}{}\n", what, value);
  };
  line("vm", vm.name);
  line("epoch", fmt::format("{} of generation {}, {}", info.epoch.value, info.generation.value,
                            info.full ? "full (needs no other)" : "delta"));
  line("cut", fmt::format("{}, {:.1f} s ago", utc_text(info.cut_wall),
                          seconds_between(info.cut_wall, system_clock().wall())));
  line("committed", fmt::format("{}, {:.3f} s after its cut (by two hosts' clocks)",
                                utc_text(info.committed_wall),
                                seconds_between(info.cut_wall, info.committed_wall)));
  line("pages", fmt::format("{}, {} raw", info.pages, mb_text(info.raw_bytes)));
  line("stored", mb_text(info.stored_bytes));
  line("device state", fmt::format("{} bytes", info.device_bytes));
  if (!info.tier.empty()) line("tier", info.tier);
  line("encrypted", info.encrypted ? "yes" : "no");
  line("pinned", info.pinned ? "yes" : "no");
  if (record) {
    line("qemu",
         fmt::format("{}, {}", or_unknown(record->qemu_version), or_unknown(record->qemu_binary)));
    line("machine type", or_unknown(record->machine_type));
    line("accelerator", or_unknown(record->accelerator));
    if (!record->uuid.empty()) line("uuid", record->uuid);
    if (!record->argv.empty()) {
      replay::QemuCommand command;
      command.argv = record->argv;
      command.cwd = record->cwd;
      line("command", replay::shell_text(command));
    }
  } else {
    line("machine", "its recorded description cannot be read");
  }
  for (const RamBlock& block : machine.layout.blocks) {
    line("ram block",
         fmt::format("{:<28} {:>16} bytes  {:>10} pages", block.name, block.bytes, block.pages()));
  }
  for (const Disk& disk : machine.disks) {
    line("disk", fmt::format("{:<28} {:>16} bytes", disk.name, disk.bytes));
  }
}

void print_block_diff(const replay::BlockDiff& block) {
  fmt::print("{}{}: {} of {} pages differ", block.is_disk ? "disk " : "", block.name,
             block.pages_differing, std::max(block.pages_a, block.pages_b));
  if (block.bytes_differing) fmt::print(", {} bytes in them", *block.bytes_differing);
  if (block.pages_a != block.pages_b) {
    fmt::print(" ({} pages before, {} after)", block.pages_a, block.pages_b);
  }
  fmt::print("\n");
  for (const replay::PageRange& range : block.ranges) {
    const std::uint64_t last = range.first.value + range.count - 1;
    fmt::print("  page{} {}{}  (offset 0x{:x}, {} bytes)\n", range.count == 1 ? " " : "s",
               range.first.value, range.count == 1 ? "" : fmt::format("-{}", last),
               range.first.value * kPageBytes, range.count * kPageBytes);
  }
  if (block.ranges.size() < block.ranges_total) {
    fmt::print("  and {} more ranges (--ranges 0 lists all)\n",
               block.ranges_total - block.ranges.size());
  }
}

void print_diff(const EpochInfo& a, const EpochInfo& b, const replay::EpochDiff& diff) {
  fmt::print(
      "epoch {} (cut {}) to epoch {} (cut {}): {}\n", a.epoch.value, utc_text(a.cut_wall),
      b.epoch.value, utc_text(b.cut_wall),
      diff.same() ? "nothing differs" : fmt::format("{} pages differ", diff.pages_differing()));
  for (const replay::BlockDiff& block : diff.blocks) {
    if (block.pages_differing != 0) print_block_diff(block);
  }
  if (diff.device_differs_at) {
    fmt::print("device state: differs from byte {} on ({} and {} bytes)\n", *diff.device_differs_at,
               diff.device_bytes_a, diff.device_bytes_b);
  } else {
    fmt::print("device state: the same, {} bytes\n", diff.device_bytes_a);
  }
  if (diff.machine_differs) fmt::print("machine description: differs (see show)\n");
}

void print_exported(const VmInfo& vm, const EpochInfo& info, const replay::ExportReport& report,
                    const store::Reader::Reads& reads) {
  fmt::print("VM '{}', epoch {}, cut {}: {} pages written, {} zero\n", vm.name, info.epoch.value,
             utc_text(info.cut_wall), report.pages, report.zero_pages);
  for (const replay::ExportedFile& file : report.files) {
    fmt::print("  {}  {} bytes\n", file.path, file.bytes);
  }
  for (const std::string& block : report.left_out) {
    fmt::print("left out: RAM block '{}', whose guest-physical address is not known\n", block);
  }
  fmt::print("read: {}\n", reads_text(reads));
}

}  // namespace

Status show_epoch(const ReplayScope& scope, std::optional<Epoch> wanted) {
  VMSHADOW_ASSIGN(const auto reader, store::Reader::open(scope.store, scope.keys));
  VMSHADOW_ASSIGN(const VmInfo vm, choose_vm(*reader, scope.vm));
  VMSHADOW_ASSIGN(const EpochInfo info, choose_epoch(*reader, vm, wanted));
  VMSHADOW_ASSIGN(const auto image, reader->open(vm.name, info.epoch));
  std::optional<replay::MachineRecord> record;
  if (auto parsed = replay::parse_machine_record(image->machine().json)) {
    record = *std::move(parsed);
  }
  if (scope.json) {
    print_json(show_json(vm, info, image->machine(), record, system_clock().wall()));
  } else {
    print_shown(vm, info, image->machine(), record);
  }
  return {};
}

Status diff_two_epochs(const ReplayScope& scope, const ReplayDiffOptions& options) {
  VMSHADOW_ASSIGN(const auto reader, store::Reader::open(scope.store, scope.keys));
  VMSHADOW_ASSIGN(const VmInfo vm, reader->vm(scope.vm));
  VMSHADOW_ASSIGN(const EpochInfo a, choose_epoch(*reader, vm, options.a));
  VMSHADOW_ASSIGN(const EpochInfo b, choose_epoch(*reader, vm, options.b));
  VMSHADOW_ASSIGN(const auto image_a, reader->open(vm.name, a.epoch));
  VMSHADOW_ASSIGN(const auto image_b, reader->open(vm.name, b.epoch));
  std::optional<replay::EpochDiff> diff;
  {
    ProgressBar bar("comparing");
    replay::DiffOptions diff_options;
    diff_options.count_bytes = options.count_bytes;
    if (options.ranges_max != 0) diff_options.ranges_max = options.ranges_max;
    diff_options.on_progress = [&](std::uint64_t pages, std::uint64_t pages_total) -> Status {
      bar.update(pages * kPageBytes, pages_total * kPageBytes);
      return {};
    };
    VMSHADOW_ASSIGN(diff, replay::diff_epochs(*image_a, *image_b, diff_options));
  }
  if (scope.json) {
    print_json(diff_json(vm.name, a, b, *diff));
  } else {
    print_diff(a, b, *diff);
  }
  return {};
}

Status export_one_epoch(const ReplayScope& scope, const ReplayExportOptions& options) {
  VMSHADOW_ASSIGN(const replay::ExportFormat format, parse_format(options.format));
  VMSHADOW_ASSIGN(const auto reader, store::Reader::open(scope.store, scope.keys));
  VMSHADOW_ASSIGN(const VmInfo vm, choose_vm(*reader, scope.vm));
  VMSHADOW_ASSIGN(const EpochInfo info, choose_epoch(*reader, vm, options.epoch));
  VMSHADOW_ASSIGN(const auto image, reader->open(vm.name, info.epoch));

  // From here on there is something to clean up. A file over a size limit is an error then, too.
  ::signal(SIGXFSZ, SIG_IGN);
  VMSHADOW_ASSIGN(const StopSignal stop, StopSignal::create());
  std::optional<replay::ExportReport> report;
  {
    ProgressBar bar("exporting " + vm.name);
    replay::ExportOptions export_options;
    export_options.replace = options.replace;
    export_options.on_progress = [&](std::uint64_t done, std::uint64_t total) -> Status {
      bar.update(done, total);
      if (!stop.wait(io::Deadline{})) return {};
      return fail(Errc::cancelled, "the export was interrupted; nothing of it was kept");
    };
    auto exported = replay::export_epoch(*image, vm.name, format, options.out, export_options);
    if (!exported) {
      Error error = std::move(exported).error();
      if (error.code == Errc::no_space) error.message += "; nothing of the export was kept";
      return fail(std::move(error));
    }
    report = *std::move(exported);
  }
  const store::Reader::Reads reads = settle_reads(scope, *reader);
  if (scope.json) {
    ReportJson json = export_json(vm.name, info, options.format, *report);
    json["read_bytes"] = reads_json(reads);
    print_json(json);
  } else {
    print_exported(vm, info, *report, reads);
  }
  return {};
}

}  // namespace vmshadow::app
