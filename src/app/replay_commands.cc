#include "app/replay_commands.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <memory>

#include <vmshadow/clock.h>

#include "app/progress_bar.h"
#include "app/replay_reports.h"
#include "replay/disk_images.h"
#include "replay/machine_record.h"
#include "replay/restorer.h"
#include "store/reader.h"
#include "store/verifier.h"

namespace vmshadow::app {
namespace {

using Json = ReportJson;

/// Longest part of a VM's name in the run folder's: a unix socket's path has 107 characters.
constexpr std::size_t kNameInPathMax = 40;

double age_of(WallTime time) { return seconds_between(time, system_clock().wall()); }

void print_vm_line(const VmInfo& vm) {
  if (vm.epochs.empty()) {
    fmt::print("{:<24} {:>3}  no committed epoch\n", vm.name, vm.generation.value);
    return;
  }
  std::uint64_t stored = 0;
  for (const EpochInfo& info : vm.epochs) stored += info.stored_bytes;
  const EpochInfo& newest = vm.epochs.back();
  fmt::print("{:<24} {:>3}  {:>8} … {:<8} {}  {:>9.1f} s  {}\n", vm.name, vm.generation.value,
             vm.epochs.front().epoch.value, newest.epoch.value, utc_text(newest.cut_wall),
             age_of(newest.cut_wall), mb_text(stored));
}

/// Columns for pins, tiers and encryption only where the store has any.
void print_epochs(const VmInfo& vm) {
  const auto any = [&](auto has) { return std::any_of(vm.epochs.begin(), vm.epochs.end(), has); };
  const bool tiers = any([](const EpochInfo& info) { return !info.tier.empty(); });
  const bool pins = any([](const EpochInfo& info) { return info.pinned; });
  const bool encrypted = any([](const EpochInfo& info) { return info.encrypted; });
  fmt::print("{:>8}  {:>3}  {:<5}  {:<24}  {:>10}  {:>12}  {:>12}{}{}{}\n", "epoch", "gen", "kind",
             "cut", "pages", "raw", "stored", tiers ? "  tier" : "", encrypted ? "  encrypted" : "",
             pins ? "  pin" : "");
  for (const EpochInfo& info : vm.epochs) {
    fmt::print("{:>8}  {:>3}  {:<5}  {:<24}  {:>10}  {:>12}  {:>12}", info.epoch.value,
               info.generation.value, info.full ? "full" : "delta", utc_text(info.cut_wall),
               info.pages, mb_text(info.raw_bytes), mb_text(info.stored_bytes));
    if (tiers) fmt::print("  {:<4}", info.tier.empty() ? "-" : info.tier);
    if (encrypted) fmt::print("  {:<9}", info.encrypted ? "yes" : "no");
    if (pins) fmt::print("  {}", info.pinned ? "pin" : "-");
    fmt::print("\n");
  }
  if (!vm.retention.empty()) fmt::print("retention: {}\n", vm.retention);
}

/// Where a new folder for a started QEMU goes: mkdtemp's template.
std::string run_folder_template(const std::string& run_dir, const EpochInfo& info,
                                const std::string& vm_name) {
  std::string base = run_dir;
  if (base.empty()) {
    const char* const runtime_dir = std::getenv("XDG_RUNTIME_DIR");
    if (::geteuid() == 0) {
      base = "/run";
    } else {
      base = runtime_dir != nullptr && *runtime_dir == '/' ? runtime_dir : "/tmp";
    }
  }
  return fmt::format("{}/shadow-replay-{}-{}-XXXXXX", base, vm_name.substr(0, kNameInPathMax),
                     info.epoch.value);
}

/// A folder of our own for the monitor's socket and the log; removed again unless kept.
class RunFolder {
 public:
  static Result<RunFolder> make(std::string path_template) {
    if (::mkdtemp(path_template.data()) == nullptr) {
      return fail_errno(errno, fmt::format("making a folder {} (name another place with --run-dir)",
                                           path_template));
    }
    return RunFolder(std::move(path_template));
  }
  RunFolder(RunFolder&& other) noexcept : path_(std::exchange(other.path_, {})) {}
  RunFolder& operator=(RunFolder&&) = delete;
  ~RunFolder() {
    if (path_.empty()) return;
    std::error_code ignored;
    std::filesystem::remove(qmp_path(), ignored);
    // A log with something in it stays: the error that ended this names it.
    if (std::filesystem::file_size(log_path(), ignored) == 0) {
      std::filesystem::remove(log_path(), ignored);
    }
    std::filesystem::remove(path_, ignored);
  }
  void keep() { path_.clear(); }
  [[nodiscard]] std::string qmp_path() const { return path_ + "/qmp.sock"; }
  [[nodiscard]] std::string log_path() const { return path_ + "/qemu.log"; }

 private:
  explicit RunFolder(std::string path) : path_(std::move(path)) {}
  std::string path_;
};

/// Everything known about a restore that is to be reported.
struct RestoreSummary {
  const VmInfo& vm;
  const EpochInfo& epoch;
  const replay::RestoreReport& report;
  std::string qmp_path;
  std::string log_path;
  double age_s{};
  std::size_t newer_epochs{};
  store::Reader::Reads reads;
};

double ms(std::chrono::microseconds phase) { return static_cast<double>(phase.count()) / 1e3; }

void print_summary_json(const RestoreSummary& s) {
  const auto& phases = s.report.phases;
  Json json{{"vm", s.vm.name}};
  json.update(epoch_json(s.epoch));
  json["age_s"] = s.age_s;
  json["newer_epochs"] = s.newer_epochs;
  json["run_state"] = s.report.run_state.empty() ? Json(nullptr) : Json(s.report.run_state);
  json["pid"] = s.report.pid ? Json(*s.report.pid) : Json(nullptr);
  json["qmp"] = s.qmp_path.empty() ? Json(nullptr) : Json(s.qmp_path);
  json["log"] = s.log_path.empty() ? Json(nullptr) : Json(s.log_path);
  json["phases_ms"] = {{"launch", ms(phases.launch)},
                       {"connect", ms(phases.connect)},
                       {"send", ms(phases.send)},
                       {"load", ms(phases.load)}};
  json["stream"] = {{"bytes", s.report.stream.bytes},
                    {"pages", s.report.stream.pages},
                    {"zero_pages", s.report.stream.zero_pages}};
  json["read_bytes"] = reads_json(s.reads);
  print_json(json);
}

void print_summary(const RestoreSummary& s) {
  const auto& phases = s.report.phases;
  fmt::print("VM '{}' is {}: epoch {} of generation {}, cut {}\n", s.vm.name,
             s.report.run_state.empty() ? "loaded (no monitor to ask whether it runs)"
                                        : s.report.run_state,
             s.epoch.epoch.value, s.epoch.generation.value, utc_text(s.epoch.cut_wall));
  fmt::print("lost: what the guest did after that cut, {:.1f} s before now{}\n", s.age_s,
             s.newer_epochs == 0
                 ? ""
                 : fmt::format(" ({} newer epochs are in the store)", s.newer_epochs));
  if (s.report.pid) fmt::print("QEMU: pid {}, log {}\n", *s.report.pid, s.log_path);
  if (!s.qmp_path.empty()) fmt::print("QMP: {}\n", s.qmp_path);
  fmt::print(
      "took: launch {:.1f} ms, connect {:.1f} ms, send {:.1f} ms ({}, {} pages, {} of them "
      "zero), load {:.1f} ms\n",
      ms(phases.launch), ms(phases.connect), ms(phases.send), mb_text(s.report.stream.bytes),
      s.report.stream.pages, s.report.stream.zero_pages, ms(phases.load));
  fmt::print("read: {}\n", reads_text(s.reads));
}

Result<replay::QemuCommand> recorded_command(const EpochImage& image,
                                             const ReplayRestoreOptions& options,
                                             const std::string& qmp_path) {
  VMSHADOW_ASSIGN(const replay::MachineRecord record,
                  replay::parse_machine_record(image.machine().json));
  return replay::command_for_restore(record, options.changes, qmp_path);
}

/// What the operator has to say about the disks of an epoch that is to be started here.
Status check_disks(const EpochImage& image, const ReplayRestoreOptions& options) {
  const auto& disks = image.machine().disks;
  if (disks.empty() || options.old_disks || !options.disks.empty()) return {};
  std::vector<std::string> names;
  for (const Disk& disk : disks) names.push_back(disk.name);
  return fail(Errc::invalid_argument,
              fmt::format("epoch {} holds disks ({}): --disks FOLDER writes them there and starts "
                          "QEMU with them; --old-disks leaves those that the command line names, "
                          "which must be as they were at the cut",
                          image.info().epoch.value, fmt::join(names, ", ")));
}

Status write_disks(const EpochImage& image, const std::vector<replay::DiskImage>& images) {
  ProgressBar bar("writing disks");
  replay::ExportOptions how;
  how.on_progress = [&](std::uint64_t done, std::uint64_t total) {
    bar.update(done, total);
    return Status{};
  };
  return replay::write_disk_images(image, images, how);
}

Status print_command(const EpochImage& image, const ReplayScope& scope,
                     const ReplayRestoreOptions& options, const std::string& folder) {
  VMSHADOW_ASSIGN(const replay::QemuCommand command,
                  recorded_command(image, options, folder + "/qmp.sock"));
  if (scope.json) {
    print_json({{"argv", command.argv},
                {"cwd", command.cwd},
                {"environment", command.environment},
                {"needs_kvm", command.needs_kvm}});
  } else {
    fmt::print("{}\n", replay::shell_text(command));
  }
  return {};
}

}  // namespace

Status list_epochs(const ReplayScope& scope) {
  VMSHADOW_ASSIGN(const auto reader, store::Reader::open(scope.store, scope.keys));
  std::vector<VmInfo> vms;
  if (scope.vm.empty()) {
    VMSHADOW_ASSIGN(vms, reader->vms());
  } else {
    VMSHADOW_ASSIGN(VmInfo vm, reader->vm(scope.vm));
    vms.push_back(std::move(vm));
  }
  if (scope.json) {
    Json list = Json::array();
    for (const VmInfo& vm : vms) list.push_back(vm_json(vm, system_clock().wall()));
    print_json({{"vms", std::move(list)}, {"damaged_places", reader->damage().size()}});
    return {};
  }
  if (!scope.vm.empty()) {
    print_epochs(vms.front());
  } else if (vms.empty()) {
    fmt::print("the store holds no VM yet\n");
  } else {
    fmt::print("{:<24} {:>3}  {:<19} {:<24}  {:>11}  {}\n", "vm", "gen", "epochs", "newest cut",
               "age", "stored");
    for (const VmInfo& vm : vms) print_vm_line(vm);
  }
  if (!reader->damage().empty()) {
    fmt::print("{} places of the journal are damaged: run verify\n", reader->damage().size());
  }
  return {};
}

namespace {

/// What a verification, quick or deep, found.
struct Findings {
  std::vector<store::Damage> damage;
  std::vector<VmInfo> vms;
  std::uint64_t records{};
  std::uint64_t bytes{};
  std::uint64_t torn_tail_bytes{};
  std::vector<std::string> torn_tail_commits;
  std::map<std::string, std::string> unopened;  ///< by VM, why its encrypted epochs were not read
};

Result<Findings> read_every_byte(const ReplayScope& scope) {
  ProgressBar bar("verifying");
  VMSHADOW_ASSIGN(store::VerifyReport report, store::Verifier::run(
                                                  scope.store,
                                                  [&](const store::ScanProgress& progress) {
                                                    bar.update(progress.bytes_done,
                                                               progress.bytes_total);
                                                  },
                                                  scope.keys));
  Findings findings{
      std::move(report.damage),
      std::move(report.vms),
      report.records,
      report.bytes,
      report.torn_tail ? report.torn_tail->bytes : 0,
      report.torn_tail ? std::move(report.torn_tail->commits) : std::vector<std::string>(),
      {}};
  for (auto& [vm, error] : report.unopened) findings.unopened[vm] = std::move(error.message);
  return findings;
}

/// Segments are numbered from 1: 0 is a place that only the words name.
std::string damage_text(const store::Damage& damage) {
  return damage.at.segment.value == 0 ? damage.what : damage.text();
}

/// Opens the store and each epoch: its records are all there and in order, as far as the index
/// knows. No page is read.
Result<Findings> open_every_epoch(const ReplayScope& scope) {
  VMSHADOW_ASSIGN(const auto reader, store::Reader::open(scope.store, scope.keys));
  Findings findings;
  findings.damage = reader->damage();
  VMSHADOW_ASSIGN(findings.vms, reader->vms());
  for (const VmInfo& vm : findings.vms) {
    if (!scope.vm.empty() && vm.name != scope.vm) continue;
    for (const EpochInfo& info : vm.epochs) {
      if (info.encrypted && findings.unopened.contains(vm.name)) continue;
      if (auto opened = reader->open(vm.name, info.epoch); !opened) {
        if (info.encrypted && opened.error().code != Errc::corrupt) {
          findings.unopened[vm.name] = std::move(opened).error().message;
          continue;
        }
        store::Damage damage;
        damage.what = std::move(opened).error().message;
        damage.vm_name = vm.name;
        damage.epoch = info.epoch;
        findings.damage.push_back(std::move(damage));
      }
    }
  }
  return findings;
}

void print_findings(const Findings& findings, const std::vector<std::string>& damage, bool deep) {
  if (deep) fmt::print("{} records, {} read\n", findings.records, mb_text(findings.bytes));
  for (const VmInfo& vm : findings.vms) {
    fmt::print("VM '{}': {} epochs can be {}\n", vm.name, vm.epochs.size(),
               deep ? "restored" : "opened");
  }
  if (!deep) fmt::print("pages were not read: verify --deep proves every byte\n");
  if (findings.torn_tail_bytes != 0) {
    fmt::print(
        "the last {} bytes are an epoch that was never committed, or what their file held "
        "before it was recycled: no damage\n",
        findings.torn_tail_bytes);
  }
  for (const std::string& commit : findings.torn_tail_commits) {
    fmt::print(
        "{} is in these bytes: it was never acknowledged, unless the disk lost or damaged what it "
        "had called durable\n",
        commit);
  }
  for (const auto& [vm, why] : findings.unopened) {
    fmt::print("encrypted epochs of VM '{}' were not {}: {}\n", vm, deep ? "decrypted" : "opened",
               why);
  }
  for (const std::string& text : damage) fmt::print("DAMAGED {}\n", text);
}

}  // namespace

Status verify_store(const ReplayScope& scope, bool deep) {
  VMSHADOW_ASSIGN(Findings findings, deep ? read_every_byte(scope) : open_every_epoch(scope));
  const auto asked_for = [&](const std::string& name) {
    return scope.vm.empty() || name.empty() || name == scope.vm;
  };
  std::erase_if(findings.damage, [&](const auto& place) { return !asked_for(place.vm_name); });
  std::erase_if(findings.vms, [&](const VmInfo& vm) { return !asked_for(vm.name); });
  std::erase_if(findings.unopened, [&](const auto& entry) { return !asked_for(entry.first); });
  if (!scope.vm.empty() && findings.vms.empty() && findings.damage.empty()) {
    return fail(Errc::not_found, fmt::format("no VM '{}' in the store", scope.vm));
  }
  std::vector<std::string> damage;
  for (const store::Damage& place : findings.damage) damage.push_back(damage_text(place));
  if (scope.json) {
    Json vms = Json::array();
    for (const VmInfo& vm : findings.vms) vms.push_back(vm_json(vm, system_clock().wall()));
    Json places = Json::array();
    for (const store::Damage& place : findings.damage) places.push_back(damage_json(place));
    Json json;
    json["deep"] = deep;
    json["records"] = deep ? Json(findings.records) : Json(nullptr);
    json["bytes"] = deep ? Json(findings.bytes) : Json(nullptr);
    json["damage"] = damage;
    json["damaged"] = std::move(places);
    json["torn_tail_bytes"] = findings.torn_tail_bytes;
    json["torn_tail_commits"] = findings.torn_tail_commits;
    json["unopened"] = Json(findings.unopened);
    json["vms"] = std::move(vms);
    print_json(json);
  } else {
    print_findings(findings, damage, deep);
  }
  if (damage.empty() && deep && !findings.unopened.empty()) {
    return fail(Errc::permission,
                fmt::format("pages of {} VM(s) were not read: {}", findings.unopened.size(),
                            findings.unopened.begin()->second));
  }
  if (damage.empty()) return {};
  return fail(Errc::corrupt, fmt::format("{} damaged place(s) in the journal, the first: {}",
                                         damage.size(), damage.front()));
}

Status restore_epoch(const ReplayScope& scope, ReplayRestoreOptions options) {
  VMSHADOW_ASSIGN(const auto reader, store::Reader::open(scope.store, scope.keys));
  VMSHADOW_ASSIGN(const VmInfo vm, choose_vm(*reader, scope.vm));
  VMSHADOW_ASSIGN(const EpochInfo epoch, choose_epoch(*reader, vm, options.epoch));
  VMSHADOW_ASSIGN(const auto image, reader->open(vm.name, epoch.epoch));

  const std::string folder_template = run_folder_template(options.run_dir, epoch, vm.name);
  if (options.dry_run) return print_command(*image, scope, options, folder_template);

  std::optional<RunFolder> folder;
  replay::RestoreTarget target = replay::IncomingTarget{options.incoming};
  std::string qmp_path = options.qmp;
  std::string log_path;
  if (!options.qmp.empty()) {
    target = replay::MonitorTarget{options.qmp};
  } else if (options.incoming.empty()) {
    // Before anything is made: is there a command at all?
    VMSHADOW_TRY(check_disks(*image, options));
    std::vector<replay::DiskImage> images;
    if (!options.disks.empty()) {
      VMSHADOW_ASSIGN(images, replay::plan_disk_images(*image, options.disks));
    }
    for (const replay::DiskImage& one : images) options.changes.images.push_back(one.instead);
    VMSHADOW_TRY(recorded_command(*image, options, folder_template));
    if (!images.empty()) VMSHADOW_TRY(write_disks(*image, images));
    VMSHADOW_ASSIGN(RunFolder made, RunFolder::make(folder_template));
    folder.emplace(std::move(made));
    qmp_path = folder->qmp_path();
    log_path = folder->log_path();
    VMSHADOW_ASSIGN(auto command, recorded_command(*image, options, qmp_path));
    target = replay::LaunchTarget{std::move(command), qmp_path, log_path};
  }

  std::optional<replay::RestoreReport> report;
  {
    ProgressBar bar("restoring " + vm.name);
    replay::RestoreOptions restore_options;
    restore_options.on_progress = [&](std::uint64_t pages, std::uint64_t pages_total) {
      bar.update(pages * kPageBytes, pages_total * kPageBytes);
    };
    VMSHADOW_ASSIGN(report, replay::restore(*image, target, restore_options, system_clock()));
  }
  if (folder) folder->keep();
  const auto newer = static_cast<std::size_t>(
      std::count_if(vm.epochs.begin(), vm.epochs.end(),
                    [&](const EpochInfo& info) { return info.epoch > epoch.epoch; }));
  const RestoreSummary summary{vm,       epoch,
                               *report,  qmp_path,
                               log_path, age_of(epoch.cut_wall),
                               newer,    settle_reads(scope, *reader)};
  if (scope.json) {
    print_summary_json(summary);
  } else {
    print_summary(summary);
  }
  return {};
}

}  // namespace vmshadow::app
