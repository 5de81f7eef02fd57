// The main job on a real guest, start to end: boot a witness, protect it, watch lag and pause, kill
// QEMU, restore the newest committed epoch, let the witness judge; with --disk its disks as well,
// of every epoch. tools/demo builds and runs it.
#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <optional>
#include <random>
#include <vector>

#include "base/statistics.h"
#include "store/reader.h"
#include "support/disk_oracle.h"
#include "support/replication_rig.h"

namespace {

using namespace vmshadow;        // NOLINT(google-build-using-namespace): a main, not a header
using namespace vmshadow::test;  // NOLINT(google-build-using-namespace)
using Json = nlohmann::json;
using std::chrono::seconds;

constexpr seconds kBootWithin{180};
constexpr seconds kEpochsWithin{600};
constexpr std::size_t kReportsBefore = 20;
constexpr std::size_t kReportsAfter = 50;
/// Of the two disks; the first's last third has something in it to begin with.
constexpr std::uint64_t kFirstDiskBytes = std::uint64_t{96} << 20;
constexpr const char* kSecondDiskSize = "64M";

struct DemoOptions {
  std::string guest = "linux";
  std::string accelerator = "auto";
  std::uint64_t epochs = 50;
  std::uint64_t interval_ms = 200;
  bool disk = false;
  bool json = false;
};

/// What became of the disks, in all epochs that the store holds.
struct DisksReport {
  std::size_t epochs_judged{};
  DiskVerdict verdict;           ///< acknowledged: as the newest epoch's RAM has it
  std::uint64_t copied_pages{};  ///< with the first epoch
  std::vector<double> pages;     ///< of each other epoch
  std::vector<double> cut_ms;    ///< what of each other epoch's pause the disks took
};

/// What happened, for both outputs.
struct DemoReport {
  std::string accelerator;
  Json summary;              ///< the sidecar's
  Json restore;              ///< shadow-replay's
  double restore_ms{};       ///< command to shadow-replay's success (guest running)
  double first_answer_ms{};  ///< command to the restored guest's first whole line
  WitnessVerdict verdict;
  std::optional<DisksReport> disks;
  [[nodiscard]] bool is_good() const {
    return verdict.continues_exactly() && (!disks || disks->verdict.is_exact());
  }
};

// Steps for people; silent under --json.
struct Narrator {
  bool silent;
  template <class... Args>
  void say(fmt::format_string<Args...> text, Args&&... args) const {
    if (silent) return;
    fmt::print("{}\n", fmt::format(text, std::forward<Args>(args)...));
    std::fflush(stdout);
  }
};

GuestConfig guest_config(const DemoOptions& options) {
  GuestConfig config;
  config.kind = options.guest == "bare" ? GuestKind::bare : GuestKind::linux_kernel;
  config.accelerator = options.accelerator == "kvm"   ? Accelerator::kvm
                       : options.accelerator == "tcg" ? Accelerator::tcg
                                                      : Accelerator::automatic;
  return config;
}

/// A raw one on a thread of its own and a qcow2 one: the witness writes numbered records to both.
Status add_disks(const TempDir& folder, GuestConfig& config) {
  config.witness.insert(config.witness.end(),
                        {"disks=2", "disk_slots=512", "disk_writes_per_s=400"});
  const std::string raw = folder.file("first.img");
  std::ofstream file(raw, std::ios::binary);
  file.seekp(static_cast<std::streamoff>(kFirstDiskBytes / 3 * 2));
  std::mt19937_64 random(1);
  for (std::uint64_t bytes = 0; bytes < kFirstDiskBytes / 3; bytes += sizeof(std::uint64_t)) {
    const std::uint64_t word = random();
    file.write(reinterpret_cast<const char*>(&word), sizeof word);
  }
  file.close();
  if (!file) return fail(Errc::io, fmt::format("cannot make '{}'", raw));
  const std::string qcow2 = folder.file("second.qcow2");
  VMSHADOW_ASSIGN(const Ran made,
                  run_program({"qemu-img", "create", "-q", "-f", "qcow2", qcow2, kSecondDiskSize}));
  if (!made.status.success()) return fail(Errc::io, "qemu-img create: " + made.err);
  config.extra_args.insert(config.extra_args.end(),
                           {"-object", "iothread,id=io1", "-drive",
                            "file=" + raw + ",format=raw,if=none,id=d0,cache=none", "-device",
                            "virtio-blk-pci,drive=d0,iothread=io1", "-drive",
                            "file=" + qcow2 + ",format=qcow2,if=none,id=d1,cache=none", "-device",
                            "virtio-blk-pci,drive=d1"});
  return {};
}

Result<DisksReport> judge_all_disks(const std::string& store_directory,
                                    const std::vector<Json>& sidecar_lines) {
  DisksReport report;
  for (const Json& line : sidecar_lines) {
    if (line.value("event", "") != "epoch") continue;
    if (line.at("first_pass").get<bool>()) {
      report.copied_pages = line.at("disk_pages").get<std::uint64_t>();
      continue;
    }
    report.pages.push_back(line.at("disk_pages").get<double>());
    if (!line.at("disks_ms").is_null()) report.cut_ms.push_back(line.at("disks_ms").get<double>());
  }
  VMSHADOW_ASSIGN(const auto reader, store::Reader::open(store_directory));
  VMSHADOW_ASSIGN(const VmInfo vm, reader->vm("demo"));
  for (const EpochInfo& epoch : vm.epochs) {
    VMSHADOW_ASSIGN(const auto image, reader->open("demo", epoch.epoch));
    VMSHADOW_ASSIGN(const DiskVerdict verdict, judge_disks(*image));
    report.verdict += verdict;
    report.verdict.acknowledged = verdict.acknowledged;
    ++report.epochs_judged;
  }
  return report;
}

Status watch(SidecarProgram& sidecar, std::uint64_t epochs, const Narrator& narrator) {
  const bool live = !narrator.silent && ::isatty(STDOUT_FILENO) != 0;
  const auto deadline = io::deadline_after(kEpochsWithin);
  std::size_t shown = 0;
  for (;;) {
    // The full pass is one more.
    const Status done = sidecar.wait_for_epochs(epochs + 1, io::deadline_after(seconds(1)));
    const auto lines = sidecar.lines();
    if (!narrator.silent && lines.size() > shown && lines.back().value("event", "") == "epoch") {
      shown = lines.size();
      const Json& line = lines.back();
      const double pause = line.at("pause_ms").is_null() ? 0 : line.at("pause_ms").get<double>();
      fmt::print("{}  epoch {:>5}   lag {:>6.1f} ms   pause {:>6.2f} ms   {:>6} pages{}",
                 live ? "\r" : "", line.at("epoch").get<std::uint64_t>(),
                 line.at("lag_ms").get<double>(), pause, line.at("pages").get<std::uint64_t>(),
                 live ? "   " : "\n");
      std::fflush(stdout);
    }
    if (done) break;
    if (done.error().code != Errc::timed_out || io::Deadline::clock::now() >= deadline) return done;
  }
  if (live) fmt::print("\n");
  return {};
}

Result<DemoReport> run_demo(const DemoOptions& options) {
  const Narrator narrator{options.json};
  GuestConfig config = guest_config(options);
  const TempDir disks_directory;
  if (options.disk) VMSHADOW_TRY(add_disks(disks_directory, config));
  VMSHADOW_TRY(guest_available(config));
  DemoReport report;
  report.accelerator = choose_accelerator(config) == Accelerator::kvm ? "kvm" : "tcg";

  narrator.say("1. booting the {} witness under {}{}", options.guest, report.accelerator,
               options.disk ? ", with a raw and a qcow2 disk that it writes to" : "");
  VMSHADOW_ASSIGN(const auto primary, QemuGuest::start(config));
  VMSHADOW_TRY(primary->wait_for_reports(kReportsBefore, io::deadline_after(kBootWithin)));

  const TempDir store_directory;
  VMSHADOW_ASSIGN(auto store, StoreProgram::start(store_directory.file("store")));
  narrator.say("2. protecting it: {} epochs, one every {} ms, into {}", options.epochs,
               options.interval_ms, store.directory());
  VMSHADOW_ASSIGN(auto sidecar,
                  SidecarProgram::start({"demo",
                                         primary->qmp_path(),
                                         store.address(),
                                         std::chrono::milliseconds(options.interval_ms),
                                         {}}));
  VMSHADOW_TRY(watch(sidecar, options.epochs, narrator));

  narrator.say("3. SIGKILL to QEMU, process {}", primary->process().pid());
  primary->kill();
  VMSHADOW_TRY(sidecar.process().wait(io::deadline_after(seconds(60))));
  const auto summary = sidecar.summary();
  if (!summary) return fail(Errc::closed, "the sidecar left no summary: " + sidecar.messages());
  report.summary = *summary;

  narrator.say("4. restoring the newest committed epoch, {}",
               report.summary.at("last_epoch").get<std::uint64_t>());
  VMSHADOW_ASSIGN(
      const auto restored,
      RestoredGuest::restore({store.directory(),
                              "demo",
                              "latest",
                              primary->places(),
                              primary->env(),
                              {},
                              options.disk ? disks_directory.file("restored") : std::string()}));
  report.restore = restored->report();
  report.restore_ms = static_cast<double>(restored->timing().replied.count()) / 1000.0;

  narrator.say("5. the witness judges{}", options.disk ? ", then the disks of every epoch" : "");
  VMSHADOW_ASSIGN(report.verdict,
                  judge(store.directory(), "demo", primary->witness(), *restored, kReportsAfter));
  VMSHADOW_ASSIGN(const auto reports, parse_witness_reports(restored->witness().lines()));
  report.first_answer_ms =
      static_cast<double>((reports.front().stamp - restored->timing().asked).count()) / 1e6;
  VMSHADOW_TRY(store.stop());
  if (options.disk) {
    VMSHADOW_ASSIGN(report.disks, judge_all_disks(store.directory(), sidecar.lines()));
  }
  return report;
}

Json to_json(const DemoReport& report) {
  const Json& s = report.summary;
  Json json{{"accel", report.accelerator},
            {"epochs", s.at("epochs")},
            {"pages_raw_bytes", s.at("raw_bytes")},
            {"shipped_bytes", s.at("shipped_bytes")},
            {"pause_ms_p50", s.at("pause_ms_p50")},
            {"pause_ms_p99", s.at("pause_ms_p99")},
            {"lag_ms_p50", s.at("lag_ms_p50")},
            {"lag_ms_p99", s.at("lag_ms_p99")},
            {"commit_ms_p50", s.at("commit_ms_p50")},
            {"commit_ms_p99", s.at("commit_ms_p99")},
            {"full_pass_ms", s.at("full_pass_ms")},
            {"restore_ms", report.restore_ms},
            {"first_answer_ms", report.first_answer_ms},
            {"restore_phases_ms", report.restore.at("phases_ms")},
            {"epoch_restored", report.restore.at("epoch")},
            {"witness_same_run", report.verdict.same_run},
            {"witness_bad_pages", report.verdict.bad_pages},
            {"witness_continues_exactly", report.verdict.continues_exactly()},
            {"seq_restored", report.verdict.seq_restored},
            {"seq_committed", report.verdict.seq_committed},
            {"reports_rolled_back", report.verdict.lines_rolled_back}};
  if (report.disks) {
    const DisksReport& disks = *report.disks;
    json.update({{"disk_epochs_judged", disks.epochs_judged},
                 {"disk_acknowledged", disks.verdict.acknowledged},
                 {"disk_missing", disks.verdict.missing},
                 {"disk_future", disks.verdict.future},
                 {"disk_torn", disks.verdict.torn},
                 {"disk_copied_pages", disks.copied_pages},
                 {"disk_pages_p50", quantile(disks.pages, 0.5)},
                 {"disk_cut_ms_p50", quantile(disks.cut_ms, 0.5)},
                 {"disk_cut_ms_p99", quantile(disks.cut_ms, 0.99)}});
  }
  return json;
}

void print_table(const DemoReport& report) {
  const Json j = to_json(report);
  const auto number = [&](const char* key) { return j.at(key).get<double>(); };
  const Json& phases = j.at("restore_phases_ms");
  fmt::print("\n  {:<34}{}\n", "accelerator", report.accelerator);
  fmt::print("  {:<34}{}\n", "epochs committed", j.at("epochs").get<std::uint64_t>());
  fmt::print("  {:<34}{:.1f} MB captured, {:.1f} MB shipped\n", "pages",
             number("pages_raw_bytes") / 1e6, number("shipped_bytes") / 1e6);
  fmt::print("  {:<34}p50 {:.2f}  p99 {:.2f} ms\n", "guest paused per epoch",
             number("pause_ms_p50"), number("pause_ms_p99"));
  fmt::print("  {:<34}p50 {:.1f}  p99 {:.1f} ms\n", "lag just before each commit",
             number("lag_ms_p50"), number("lag_ms_p99"));
  fmt::print("  {:<34}p50 {:.1f}  p99 {:.1f} ms\n", "cut to durable", number("commit_ms_p50"),
             number("commit_ms_p99"));
  fmt::print("  {:<34}{:.0f} ms (launch {:.0f}, connect {:.0f}, send {:.0f}, load {:.0f})\n",
             "restore, command to running", number("restore_ms"), phases.at("launch").get<double>(),
             phases.at("connect").get<double>(), phases.at("send").get<double>(),
             phases.at("load").get<double>());
  fmt::print("  {:<34}{:.0f} ms\n", "command to first whole answer", number("first_answer_ms"));
  fmt::print("  {:<34}{}\n", "same run (nonce held in RAM alone)", report.verdict.same_run);
  fmt::print("  {:<34}{}\n", "damaged pages", report.verdict.bad_pages);
  fmt::print("  {:<34}{} committed, {} restored\n", "report the epoch was cut in",
             report.verdict.seq_committed, report.verdict.seq_restored);
  fmt::print("  {:<34}{} (printed after the last commit, then lost)\n", "reports rolled back",
             report.verdict.lines_rolled_back);
  if (report.disks) {
    const DisksReport& disks = *report.disks;
    fmt::print("  {:<34}{} copied first, then p50 {:.0f} an epoch\n", "pages of disks",
               disks.copied_pages, number("disk_pages_p50"));
    fmt::print("  {:<34}p50 {:.2f}  p99 {:.2f} ms\n", "of the pause: the disks' part",
               number("disk_cut_ms_p50"), number("disk_cut_ms_p99"));
    fmt::print("  {:<34}{} acknowledged by the newest epoch\n", "records on the disks",
               disks.verdict.acknowledged);
    fmt::print("  {:<34}{} missing, {} from the future, {} torn, in {} epochs\n",
               "sectors RAM does not believe in", disks.verdict.missing, disks.verdict.future,
               disks.verdict.torn, disks.epochs_judged);
  }
  if (!report.verdict.continues_exactly()) {
    fmt::print("\nFAILED: {}\n", report.verdict.text());
  } else if (!report.is_good()) {
    fmt::print("\nFAILED: {}\n", report.disks->verdict.first);
  } else {
    fmt::print("\nThe guest went on exactly where the committed epoch was cut{}.\n",
               report.disks ? ", and each epoch's disks are those that its RAM believes in" : "");
  }
}

}  // namespace

int main(int argc, char** argv) {
  DemoOptions options;
  CLI::App cli{
      "Boots a witness guest, replicates it, kills its QEMU, restores it from the store, and lets "
      "the guest itself judge the result. Exit code 0 only if it went on exactly where the newest "
      "committed epoch was cut, and, with --disk, each epoch's disks hold every record that its "
      "RAM "
      "was told of and none that it had not issued.",
      "vmshadow-demo"};
  cli.add_option("--guest", options.guest,
                 "linux: Debian's kernel and a witness program; bare: a "
                 "bare-metal witness")
      ->check(CLI::IsMember({"linux", "bare"}))
      ->capture_default_str();
  cli.add_option("--accel", options.accelerator, "how QEMU runs it")
      ->check(CLI::IsMember({"auto", "kvm", "tcg"}))
      ->capture_default_str();
  cli.add_option("--epochs", options.epochs, "epochs to take before the kill")
      ->check(CLI::Range(std::uint64_t{1}, std::uint64_t{1000000}))
      ->capture_default_str();
  cli.add_option("--interval-ms", options.interval_ms, "time between epochs")
      ->check(CLI::Range(std::uint64_t{1}, std::uint64_t{60000}))
      ->capture_default_str();
  cli.add_flag("--disk", options.disk,
               "give it two disks that it writes to, and judge them in every epoch (Linux guests)");
  cli.add_flag("--json", options.json, "one JSON object on stdout, nothing else");
  CLI11_PARSE(cli, argc, argv);

  if (options.disk && options.guest != "linux") {
    fmt::print(stderr,
               "vmshadow-demo: --disk needs --guest linux: the bare witness has no disks\n");
    return 1;
  }
  const auto report = run_demo(options);
  if (!report) {
    fmt::print(stderr, "vmshadow-demo: {}\n", report.error().message);
    return 1;
  }
  if (options.json) {
    fmt::print("{}\n", to_json(*report).dump());
  } else {
    print_table(*report);
  }
  return report->is_good() ? 0 : 1;
}
