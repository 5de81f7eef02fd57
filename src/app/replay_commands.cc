#include "app/replay_commands.h"

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>

#include <vmshadow/clock.h>

#include "replay/machine_record.h"
#include "replay/restorer.h"
#include "store/reader.h"
#include "store/verifier.h"

namespace vmshadow::app {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::chrono::milliseconds kProgressAfter{2000};
constexpr std::chrono::milliseconds kProgressEvery{200};
/// Longest part of a VM's name in the run folder's: a unix socket's path has 107 characters.
constexpr std::size_t kNameInPathMax = 40;

std::string utc_text(WallTime time) {
  const std::time_t seconds = static_cast<std::time_t>(time.ns / 1'000'000'000);
  return fmt::format("{:%Y-%m-%dT%H:%M:%S}.{:03}Z", fmt::gmtime(seconds),
                     time.ns / 1'000'000 % 1000);
}

double seconds_since(WallTime time) {
  return static_cast<double>(system_clock().wall().ns - time.ns) / 1e9;
}

std::string mb_text(std::uint64_t bytes) {
  return fmt::format("{:.1f} MB", static_cast<double>(bytes) / 1e6);
}

/// A progress line on a terminal's stderr, once something takes long; wiped at the end.
class ProgressLine {
 public:
  explicit ProgressLine(std::string what)
      : what_(std::move(what)),
        terminal_(::isatty(STDERR_FILENO) != 0),
        next_(system_clock().monotonic() + kProgressAfter) {}
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;
  ~ProgressLine() {
    if (shown_) std::fputs("\r\033[K", stderr);
  }
  void update(std::uint64_t done, std::uint64_t total) {
    if (!terminal_ || total == 0 || system_clock().monotonic() < next_) return;
    next_ = system_clock().monotonic() + kProgressEvery;
    shown_ = true;
    const double share = static_cast<double>(done) / static_cast<double>(total);
    std::fputs(fmt::format("\r{}: {:.0f} %\033[K", what_, 100 * share).c_str(), stderr);
  }

 private:
  std::string what_;
  bool terminal_;
  bool shown_ = false;
  MonotonicTime next_;
};

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
          {"device_bytes", info.device_bytes}};
}

Json vm_json(const VmInfo& vm) {
  Json epochs = Json::array();
  for (const EpochInfo& info : vm.epochs) epochs.push_back(epoch_json(info));
  Json json{{"name", vm.name}, {"id", vm.id.hex()}, {"generation", vm.generation.value}};
  json["age_s"] =
      vm.epochs.empty() ? Json(nullptr) : Json(seconds_since(vm.epochs.back().cut_wall));
  json["epochs"] = std::move(epochs);
  return json;
}

void print_json(const Json& json) {
  std::puts(json.dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
}

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
             seconds_since(newest.cut_wall), mb_text(stored));
}

void print_epochs(const VmInfo& vm) {
  fmt::print("{:>8}  {:>3}  {:<5}  {:<24}  {:>10}  {:>12}  {:>12}\n", "epoch", "gen", "kind", "cut",
             "pages", "raw", "stored");
  for (const EpochInfo& info : vm.epochs) {
    fmt::print("{:>8}  {:>3}  {:<5}  {:<24}  {:>10}  {:>12}  {:>12}\n", info.epoch.value,
               info.generation.value, info.full ? "full" : "delta", utc_text(info.cut_wall),
               info.pages, mb_text(info.raw_bytes), mb_text(info.stored_bytes));
  }
}

/// The VM asked for, or the only one there is.
Result<VmInfo> choose_vm(const ShadowReader& reader, const std::string& name) {
  if (!name.empty()) return reader.vm(name);
  VMSHADOW_ASSIGN(std::vector<VmInfo> vms, reader.vms());
  if (vms.size() == 1) return std::move(vms.front());
  if (vms.empty()) return fail(Errc::not_found, "the store holds no VM yet");
  std::vector<std::string> names;
  for (const VmInfo& vm : vms) names.push_back(vm.name);
  return fail(Errc::invalid_argument,
              fmt::format("the store holds several VMs, name one of: {}", fmt::join(names, ", ")));
}

/// The damage that keeps an epoch from being restored: at or before it, behind the newest that can.
const store::Damage* damage_behind(const store::Reader& reader, const VmInfo& vm,
                                   std::optional<Epoch> wanted) {
  const store::Damage* found = nullptr;
  for (const store::Damage& place : reader.damage()) {
    if (place.vm_name != vm.name || !place.epoch) continue;
    if (wanted && *place.epoch > *wanted) continue;
    if (!wanted && !vm.epochs.empty() && *place.epoch < vm.epochs.back().epoch) continue;
    found = &place;
  }
  return found;
}

Result<EpochInfo> choose_epoch(const store::Reader& reader, const VmInfo& vm,
                               std::optional<Epoch> wanted) {
  if (vm.epochs.empty()) {
    return fail(Errc::not_found, fmt::format("VM '{}' has no committed epoch yet", vm.name));
  }
  if (!wanted) {
    if (const auto* damage = damage_behind(reader, vm, {})) {
      fmt::print(stderr,
                 "shadow-replay: the newest epochs of VM '{}' are lost to damage, the newest that "
                 "can be restored is {}: {}\n",
                 vm.name, vm.epochs.back().epoch.value, damage->text());
    }
    return vm.epochs.back();
  }
  for (const EpochInfo& info : vm.epochs) {
    if (info.epoch == *wanted) return info;
  }
  if (const auto* damage = damage_behind(reader, vm, wanted)) {
    return fail(
        Errc::corrupt,
        fmt::format("epoch {} of VM '{}' needs what is damaged ({}); the newest that can be "
                    "restored is {}",
                    wanted->value, vm.name, damage->text(), vm.epochs.back().epoch.value));
  }
  return fail(
      Errc::not_found,
      fmt::format("VM '{}' has no committed epoch {}; the store holds {} of them between {} "
                  "and {}",
                  vm.name, wanted->value, vm.epochs.size(), vm.epochs.front().epoch.value,
                  vm.epochs.back().epoch.value));
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
}

Result<replay::QemuCommand> recorded_command(const EpochImage& image,
                                             const ReplayRestoreOptions& options,
                                             const std::string& qmp_path) {
  VMSHADOW_ASSIGN(const replay::MachineRecord record,
                  replay::parse_machine_record(image.machine().json));
  return replay::command_for_restore(record, options.changes, qmp_path);
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
  VMSHADOW_ASSIGN(const auto reader, store::Reader::open(scope.store));
  std::vector<VmInfo> vms;
  if (scope.vm.empty()) {
    VMSHADOW_ASSIGN(vms, reader->vms());
  } else {
    VMSHADOW_ASSIGN(VmInfo vm, reader->vm(scope.vm));
    vms.push_back(std::move(vm));
  }
  if (scope.json) {
    Json list = Json::array();
    for (const VmInfo& vm : vms) list.push_back(vm_json(vm));
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

Status verify_store(const ReplayScope& scope) {
  std::optional<store::VerifyReport> report;
  {
    ProgressLine line("verifying");
    VMSHADOW_ASSIGN(report,
                    store::Verifier::run(scope.store, [&](const store::ScanProgress& progress) {
                      line.update(progress.bytes_done, progress.bytes_total);
                    }));
  }
  const auto asked_for = [&](const std::string& name) {
    return scope.vm.empty() || name.empty() || name == scope.vm;
  };
  std::vector<std::string> damage;
  for (const store::Damage& place : report->damage) {
    if (asked_for(place.vm_name)) damage.push_back(place.text());
  }
  std::erase_if(report->vms, [&](const VmInfo& vm) { return !asked_for(vm.name); });
  if (!scope.vm.empty() && report->vms.empty() && damage.empty()) {
    return fail(Errc::not_found, fmt::format("no VM '{}' in the store", scope.vm));
  }
  if (scope.json) {
    Json vms = Json::array();
    for (const VmInfo& vm : report->vms) vms.push_back(vm_json(vm));
    print_json({{"records", report->records},
                {"bytes", report->bytes},
                {"damage", damage},
                {"torn_tail_bytes", report->torn_tail ? report->torn_tail->bytes : 0},
                {"vms", std::move(vms)}});
  } else {
    fmt::print("{} records, {} read\n", report->records, mb_text(report->bytes));
    for (const VmInfo& vm : report->vms) {
      fmt::print("VM '{}': {} epochs can be restored\n", vm.name, vm.epochs.size());
    }
    if (report->torn_tail) {
      fmt::print("the last {} bytes are an epoch that was never committed: no damage\n",
                 report->torn_tail->bytes);
    }
    for (const std::string& text : damage) fmt::print("DAMAGED {}\n", text);
  }
  if (damage.empty()) return {};
  return fail(Errc::corrupt, fmt::format("{} damaged place(s) in the journal, the first: {}",
                                         damage.size(), damage.front()));
}

Status restore_epoch(const ReplayScope& scope, const ReplayRestoreOptions& options) {
  VMSHADOW_ASSIGN(const auto reader, store::Reader::open(scope.store));
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
    VMSHADOW_TRY(recorded_command(*image, options, folder_template));
    VMSHADOW_ASSIGN(RunFolder made, RunFolder::make(folder_template));
    folder.emplace(std::move(made));
    qmp_path = folder->qmp_path();
    log_path = folder->log_path();
    VMSHADOW_ASSIGN(auto command, recorded_command(*image, options, qmp_path));
    target = replay::LaunchTarget{std::move(command), qmp_path, log_path};
  }

  std::optional<replay::RestoreReport> report;
  {
    ProgressLine line("restoring " + vm.name);
    replay::RestoreOptions restore_options;
    restore_options.on_progress = [&](std::uint64_t done, std::uint64_t total) {
      line.update(done, total);
    };
    VMSHADOW_ASSIGN(report, replay::restore(*image, target, restore_options, system_clock()));
  }
  if (folder) folder->keep();
  const auto newer = static_cast<std::size_t>(
      std::count_if(vm.epochs.begin(), vm.epochs.end(),
                    [&](const EpochInfo& info) { return info.epoch > epoch.epoch; }));
  const RestoreSummary summary{
      vm, epoch, *report, qmp_path, log_path, seconds_since(epoch.cut_wall), newer};
  if (scope.json) {
    print_summary_json(summary);
  } else {
    print_summary(summary);
  }
  return {};
}

}  // namespace vmshadow::app
