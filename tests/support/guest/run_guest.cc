// witness-guest: boots a test guest and shows its reports with the host's time, for people to try.
//
//   witness-guest --kind bare --witness pages=2000 --witness tick_us=50000 --lines 20
//   witness-guest --kind foreign --lines 0          (boots, runs one command in the shell, ends)
#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <map>

#include "support/qemu_guest.h"

namespace {

using namespace vmshadow;
using namespace vmshadow::test;

constexpr std::chrono::seconds kBootLimit{120};

int complain(const Error& error) {
  fmt::print(stderr, "witness-guest: {}\n", error.message);
  return 1;
}

int show_shell(QemuGuest& guest) {
  const auto deadline = io::deadline_after(kBootLimit);
  if (auto up = guest.wait_for_shell(deadline); !up) return complain(up.error());
  auto answer = guest.run_command("cat /proc/version; lsmod", deadline);
  if (!answer) return complain(answer.error());
  fmt::print("{}", *answer);
  return 0;
}

int show_reports(QemuGuest& guest, std::size_t lines, MonotonicTime start) {
  MonotonicTime last = start;
  for (std::size_t shown = 0; lines == 0 || shown < lines; ++shown) {
    if (auto up = guest.wait_for_reports(shown + 1, io::deadline_after(kBootLimit)); !up) {
      return complain(up.error());
    }
    const ConsoleLine line = guest.witness().lines()[shown];
    const auto ms = [](std::chrono::nanoseconds d) { return static_cast<double>(d.count()) / 1e6; };
    fmt::print("{:12.3f} ms {:+9.3f} ms  {}\n", ms(line.stamp - start), ms(line.stamp - last),
               line.text);
    std::fflush(stdout);
    last = line.stamp;
  }
  const auto reports = guest.reports();
  if (!reports) return complain(reports.error());
  const WitnessRun run = examine_run(*reports);
  const auto cpu = guest.process().cpu_time();
  fmt::print(
      "{} reports, {:.0f} writes/s, longest gap {:.1f} ms, {} bad pages, {} ms of processor\n",
      run.reports, run.writes_per_s,
      std::chrono::duration<double, std::milli>(run.longest_gap).count(), run.bad_pages,
      cpu ? cpu->count() : 0);
  return run.bad_pages == 0 && run.in_sequence && run.same_run ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Boots a test guest and shows its reports", "witness-guest");
  GuestConfig config;
  std::size_t lines = 0;
  app.add_option("--kind", config.kind, "bare, linux or foreign")
      ->transform(CLI::CheckedTransformer(
          std::map<std::string, GuestKind>{{"bare", GuestKind::bare},
                                           {"linux", GuestKind::linux_kernel},
                                           {"foreign", GuestKind::foreign}}));
  app.add_option("--accel", config.accelerator, "auto, kvm or tcg")
      ->transform(CLI::CheckedTransformer(std::map<std::string, Accelerator>{
          {"auto", Accelerator::automatic}, {"kvm", Accelerator::kvm}, {"tcg", Accelerator::tcg}}));
  app.add_option("--memory", config.memory_mib, "MiB of memory");
  app.add_flag("--exact-memory", config.exact_memory, "exactly so much, even under TCG");
  app.add_option("--witness", config.witness, "a parameter of the witness, key=value; may repeat");
  app.add_option("--qemu", config.qemu, "the QEMU to run");
  app.add_option("--lines", lines, "end after so many reports (0: run until interrupted)");
  app.add_option("--extra", config.extra_args, "a further QEMU argument; may repeat")
      ->allow_extra_args(false);
  CLI11_PARSE(app, argc, argv);

  const MonotonicTime start = system_clock().monotonic();
  auto guest = QemuGuest::start(config);
  if (!guest) return complain(guest.error());
  fmt::print("pid {}, monitor {}, command:\n", (*guest)->process().pid(), (*guest)->qmp_path());
  for (const auto& word : (*guest)->env()) fmt::print("{} ", word);
  fmt::print("{}\n", fmt::join((*guest)->argv(), " "));
  std::fflush(stdout);
  return config.kind == GuestKind::foreign ? show_shell(**guest)
                                           : show_reports(**guest, lines, start);
}
