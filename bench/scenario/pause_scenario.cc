// `vmshadow-bench pause`: what an epoch costs the guest, beside the floor and beside QEMU's own
// secondary, all in one run.
#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include <algorithm>

#include "scenario/pause_parts.h"
#include "support/host.h"

namespace vmshadow::bench {
namespace {

constexpr const char* kPauseCases = "cases";
constexpr const char* kPauseParts[] = {kPauseCases, "output", "work", "idle", "memory"};

class PauseScenario final : public Scenario {
 public:
  [[nodiscard]] std::string name() const override { return "pause"; }
  [[nodiscard]] std::string help() const override {
    return "pauses per epoch, the guest's work and the sidecar's use, beside a secondary that "
           "discards everything and beside QEMU's own COLO secondary";
  }
  void add_options(CLI::App& command) override;
  [[nodiscard]] Result<Report> run(RunSize size, const Progress& progress) override;

 private:
  [[nodiscard]] bool wanted(const char* part) const {
    return only_.empty() || std::find(only_.begin(), only_.end(), part) != only_.end();
  }
  [[nodiscard]] bool wanted(const PauseCase& which) const;
  [[nodiscard]] Status measure_cases(RunSize size, const PauseSizes& sizes,
                                     const Progress& progress, Report& report) const;

  std::vector<std::string> only_;
  std::vector<std::string> guests_;
  std::vector<unsigned> pages_;
  unsigned rounds_ = 0;
  unsigned epochs_ = 0;
};

void PauseScenario::add_options(CLI::App& command) {
  std::vector<std::string> guests;
  std::vector<unsigned> pages;
  const auto add_new = [](auto& list, const auto& value) {
    if (std::find(list.begin(), list.end(), value) == list.end()) list.push_back(value);
  };
  for (const PauseCase& which : all_pause_cases()) {
    add_new(guests, which.kind());
    add_new(pages, which.pages);
  }
  const std::vector<std::string> parts(std::begin(kPauseParts), std::end(kPauseParts));
  command.add_option("--only", only_, "these parts alone")
      ->check(CLI::IsMember(parts))
      ->expected(1, static_cast<int>(parts.size()));
  command.add_option("--guest", guests_, "cases: these guests alone")
      ->check(CLI::IsMember(guests))
      ->expected(1, static_cast<int>(guests.size()));
  command.add_option("--pages", pages_, "cases: these pages per epoch alone")
      ->check(CLI::IsMember(pages))
      ->expected(1, static_cast<int>(pages.size()));
  command.add_option("--rounds", rounds_, "cases: rounds, each of one session of every secondary")
      ->check(CLI::Range(1, 1000));
  command.add_option("--epochs", epochs_, "cases: counted epochs of each session")
      ->check(CLI::Range(1, 10000));
}

bool PauseScenario::wanted(const PauseCase& which) const {
  const auto among = [](const auto& list, const auto& value) {
    return list.empty() || std::find(list.begin(), list.end(), value) != list.end();
  };
  return among(guests_, which.kind()) && among(pages_, which.pages);
}

Status PauseScenario::measure_cases(RunSize size, const PauseSizes& sizes, const Progress& progress,
                                    Report& report) const {
  Status all;
  for (const PauseCase& which : all_pause_cases()) {
    if (!wanted(which)) continue;
    // Tiny: one that runs everywhere, unless others are asked for.
    const bool tiny = which.kind() == "bare-tcg" && which.pages == 50;
    if (size == RunSize::quick && guests_.empty() && pages_.empty() && !tiny) continue;
    auto measured = measure_pause_case(which, sizes, progress, report);
    if (all) all = std::move(measured);
  }
  return all;
}

Result<Report> PauseScenario::run(RunSize size, const Progress& progress) {
  PauseSizes sizes = pause_sizes(size);
  if (rounds_ > 0) sizes.rounds = rounds_;
  if (epochs_ > 0) sizes.epochs = epochs_;
  Report report("pause");
  report.section("run");
  report.text("host", host_text());
  Status all;
  const auto measure = [&](const char* part, const auto& measured) {
    if (!wanted(part)) return;
    auto status = measured();
    if (all) all = std::move(status);
  };
  measure(kPauseCases, [&] { return measure_cases(size, sizes, progress, report); });
  report.section("beside the pauses");
  measure("output", [&] { return measure_output_gaps(sizes, progress, report); });
  measure("work", [&] { return measure_guest_work(sizes, progress, report); });
  measure("idle", [&] { return measure_idle_cpu(sizes, progress, report); });
  measure("memory", [&] { return measure_sidecar_memory(sizes, progress, report); });
  // A long run is worth its other figures; a tiny one only shows whether everything works.
  if (size == RunSize::quick && !all) return fail(all.error());
  return report;
}

}  // namespace

std::unique_ptr<Scenario> make_pause_scenario() { return std::make_unique<PauseScenario>(); }

}  // namespace vmshadow::bench
