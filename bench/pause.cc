// What an epoch's pause costs beside its floor: `pause [--json]` starts a guest and a store of its
// own and interleaves sessions of the discarding secondary with sessions of vmshadow.
#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "pause_rounds.h"
#include "support/replication_rig.h"

namespace {

using namespace vmshadow;  // NOLINT(google-build-using-namespace): a main, not a header

constexpr std::chrono::seconds kBootWithin{180};

struct Options {
  std::string guest = "bare";
  std::string accelerator = "auto";
  unsigned pages = 2000;
  bench::PauseOptions rounds;
  bool json = false;
};

test::GuestConfig guest_config(const Options& options) {
  test::GuestConfig config;
  config.accelerator = options.accelerator == "kvm"   ? test::Accelerator::kvm
                       : options.accelerator == "tcg" ? test::Accelerator::tcg
                                                      : test::Accelerator::automatic;
  const auto interval_ms = static_cast<unsigned>(options.rounds.interval.count());
  if (options.guest == "linux") {
    config.kind = test::GuestKind::linux_kernel;
    // Uniform writes over a large arena: nearly every write is another page.
    config.witness = {"arena_mib=128", "pattern=uniform",
                      fmt::format("pages_per_s={}", options.pages * 1000 / interval_ms)};
    return config;
  }
  config.kind = test::GuestKind::bare;
  config.witness = {"arena_mib=40", "pattern=sequential", "report=10",
                    fmt::format("tick_us={}", interval_ms * 1000 / 10),
                    fmt::format("pages={}", (options.pages + 9) / 10)};
  return config;
}

Result<bench::PauseReport> run(Options options) {
  VMSHADOW_ASSIGN(const auto guest, test::QemuGuest::start(guest_config(options)));
  VMSHADOW_TRY(guest->wait_for_reports(3, io::deadline_after(kBootWithin)));
  const test::TempDir directory;
  VMSHADOW_ASSIGN(auto store, test::StoreProgram::start(directory.file("store")));
  options.rounds.qmp_path = guest->qmp_path();
  options.rounds.store = {"127.0.0.1", store.port()};
  VMSHADOW_ASSIGN(const auto rounds, bench::measure_pauses(options.rounds));
  return bench::summarize(rounds);
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  std::uint64_t interval_ms = 200;
  CLI::App cli{
      "Pauses of a running guest (STOP to RESUME by QEMU's own stamps) with vmshadow, against the "
      "floor: a secondary that discards everything and acknowledges at the same points. Sessions "
      "of "
      "the two take turns; each round's ratio is of the two medians."};
  cli.add_option("--guest", options.guest)
      ->check(CLI::IsMember({"bare", "linux"}))
      ->capture_default_str();
  cli.add_option("--accel", options.accelerator)
      ->check(CLI::IsMember({"auto", "kvm", "tcg"}))
      ->capture_default_str();
  cli.add_option("--pages", options.pages, "pages the guest writes per epoch")
      ->capture_default_str();
  cli.add_option("--interval-ms", interval_ms, "time between epochs")
      ->check(CLI::Range(20, 10000))
      ->capture_default_str();
  cli.add_option("--rounds", options.rounds.rounds)
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  cli.add_option("--epochs", options.rounds.epochs_per_round, "counted epochs of each per round")
      ->check(CLI::Range(1, 10000))
      ->capture_default_str();
  cli.add_flag("--json", options.json, "one JSON object");
  CLI11_PARSE(cli, argc, argv);
  options.rounds.interval = std::chrono::milliseconds(interval_ms);

  const auto report = run(options);
  if (!report) {
    fmt::print(stderr, "pause: {}\n", report.error().message);
    return 1;
  }
  const nlohmann::json json{{"guest", options.guest},
                            {"pages_p50", report->pages_p50},
                            {"epochs_each", report->epochs_each},
                            {"pairs", report->pairs},
                            {"floor_ms_p50", report->floor_ms_p50},
                            {"floor_ms_p99", report->floor_ms_p99},
                            {"pause_ms_p50", report->vmshadow_ms_p50},
                            {"pause_ms_p99", report->vmshadow_ms_p99},
                            {"floor_ratio_p50", report->ratio_p50},
                            {"floor_ratio_p99", report->ratio_p99}};
  if (options.json) {
    fmt::print("{}\n", json.dump());
  } else {
    fmt::print(
        "{} pages per epoch, {} rounds of {} epochs each\n"
        "  floor     p50 {:.2f}  p99 {:.2f} ms\n  vmshadow  p50 {:.2f}  p99 {:.2f} ms\n"
        "  ratio     p50 {:.2f} (median over rounds)  p99 {:.2f}\n",
        report->pages_p50, report->pairs, options.rounds.epochs_per_round, report->floor_ms_p50,
        report->floor_ms_p99, report->vmshadow_ms_p50, report->vmshadow_ms_p99, report->ratio_p50,
        report->ratio_p99);
  }
  return 0;
}
