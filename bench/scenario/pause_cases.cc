// Pauses at several rates of writes, three secondaries taking turns on one guest in an order that
// rotates.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>
#include <optional>

#include "base/statistics.h"
#include "scenario/pause_comparison.h"
#include "scenario/pause_ground.h"
#include "scenario/pause_parts.h"

namespace vmshadow::bench {
namespace {

using std::chrono::milliseconds;

constexpr unsigned kPageKib = 4;
/// Of the bare guest: what it needs beside its arena.
constexpr unsigned kBareOverheadMib = 16;
constexpr unsigned kBareArenaMibMin = 16;
/// Below it a p99 is one of the two or three longest.
constexpr std::size_t kEpochsForP99 = 200;

std::string ratio_goal(unsigned pages) {
  return pages <= 50 ? "<= 0.5" : pages <= 2000 ? "<= 0.8" : "<= 0.95";
}

test::GuestConfig linux_pause_guest(const PauseCase& which) {
  test::GuestConfig config;
  config.kind = test::GuestKind::linux_kernel;
  config.accelerator = which.accel == "kvm" ? test::Accelerator::kvm : test::Accelerator::tcg;
  // In sequence: within one epoch every write is another page. No more is changed of a page than
  // tells it from the one before, as an emulated processor is slow.
  config.witness = {
      fmt::format("arena_mib={}", which.pages > 2000 ? 112 : 32),
      "pattern=sequential",
      "change_bytes=64",
      "verify_percent=0",
      "report_ms=100",
      fmt::format("pages_per_s={}",
                  which.pages * 1000ULL / static_cast<unsigned>(which.interval.count()))};
  return config;
}

struct Rounds {
  std::map<Contender, std::vector<PauseSession>> sessions;
  std::optional<std::string> colo_missing;  ///< why QEMU's own secondary has no further rounds
};

Status run_rounds(const PauseCase& which, const PauseSizes& sizes, const Progress& progress,
                  PauseGround& ground, Rounds& rounds) {
  for (unsigned round = 0; round < sizes.rounds; ++round) {
    for (std::size_t turn = 0; turn < std::size(kContenders); ++turn) {
      const Contender contender = kContenders[(round + turn) % std::size(kContenders)];
      if (contender == Contender::colo && rounds.colo_missing) continue;
      progress.step(fmt::format("{}: {}, round", which.title(), name_of(contender)), round + 1,
                    sizes.rounds);
      auto session = ground.run(contender, sizes.epochs, which.interval);
      if (session) {
        rounds.sessions[contender].push_back(*std::move(session));
        continue;
      }
      Error error = std::move(session).error().with_context(
          fmt::format("round {}, {}", round + 1, name_of(contender)));
      // QEMU's secondary may fail on its own account; the comparison with the floor still stands.
      if (contender != Contender::colo) return fail(std::move(error));
      rounds.colo_missing = error.message;
    }
  }
  return {};
}

PauseSession all_of(const std::vector<PauseSession>& sessions) {
  PauseSession all;
  for (const PauseSession& session : sessions) all.add(session);
  return all;
}

/// Of each session the median of one figure.
std::vector<double> medians(const std::vector<PauseSession>& sessions,
                            std::vector<double> PauseSession::*figure) {
  std::vector<double> of;
  for (const PauseSession& session : sessions) {
    if (!(session.*figure).empty()) of.push_back(quantile(session.*figure, 0.5));
  }
  return of;
}

PauseSide side_of(const char* name, const std::vector<PauseSession>& sessions,
                  std::vector<double> PauseSession::*amount) {
  return {name, medians(sessions, &PauseSession::pause_ms), medians(sessions, amount)};
}

void report_rounds(const PauseCase& which, Rounds& rounds, Report& report) {
  const auto& ours = rounds.sessions[Contender::vmshadow];
  const auto& floor = rounds.sessions[Contender::floor];
  const auto& colo = rounds.sessions[Contender::colo];
  const PauseSession all = all_of(ours);
  const PauseSession all_floor = all_of(floor);
  const PauseSession all_colo = all_of(colo);
  // The pages themselves where both say how many; QEMU's secondary does not, so there what the
  // guest says that it wrote.
  const PauseSide us = side_of("vmshadow", ours, &PauseSession::pages);
  const PauseSide the_floor = side_of("the floor", floor, &PauseSession::pages);
  const PauseComparison to_floor = compare_pauses(us, the_floor);
  const PauseComparison to_colo =
      compare_pauses(side_of("vmshadow", ours, &PauseSession::written),
                     side_of("QEMU's own secondary", colo, &PauseSession::written));

  report.figure("pages_p50", quantile(all.pages, 0.5), "pages");
  report.figure("floor_pages_p50", quantile(all_floor.pages, 0.5), "pages");
  for (const auto& [key, sessions] : {std::pair{"written_p50", &ours},
                                      {"floor_written_p50", &floor},
                                      {"colo_written_p50", &colo}}) {
    const auto written = medians(*sessions, &PauseSession::written);
    report.figure_or_missing(key,
                             written.empty() ? std::nullopt : std::optional(quantile(written, 0.5)),
                             "pages per epoch, by the guest's count", "no round");
  }
  report.figure("epochs", static_cast<double>(all.pause_ms.size()), "of each");
  report.figure("rounds", static_cast<double>(ours.size()), "");
  report.figure_or_missing("floor_ratio_p50", to_floor.ratio, "", to_floor.why_not, "<= 1.10");
  const bool enough = std::min(all.pause_ms.size(), all_floor.pause_ms.size()) >= kEpochsForP99;
  const bool comparable = to_floor.ratio && enough;
  const double p99 = quantile(all.pause_ms, 0.99);
  const double floor_p99 = quantile(all_floor.pause_ms, 0.99);
  report.figure_or_missing(
      "floor_ratio_p99", comparable ? std::optional(p99 / floor_p99) : std::nullopt, "",
      to_floor.ratio ? fmt::format("fewer than {} epochs", kEpochsForP99) : to_floor.why_not,
      "<= 1.3");
  report.figure_or_missing("colo_ratio_p50", to_colo.ratio, "",
                           rounds.colo_missing.value_or(to_colo.why_not), ratio_goal(which.pages));
  report.figure("pause_ms_p50", quantile(all.pause_ms, 0.5), "ms");
  report.figure("pause_ms_p99", p99, "ms");
  report.figure("floor_ms_p50", quantile(all_floor.pause_ms, 0.5), "ms");
  report.figure("floor_ms_p99", floor_p99, "ms");
  report.figure("colo_epochs", static_cast<double>(all_colo.pause_ms.size()), "");
  const auto of_colo = [&](double q) {
    return all_colo.pause_ms.empty() ? std::nullopt : std::optional(quantile(all_colo.pause_ms, q));
  };
  const std::string no_colo = rounds.colo_missing.value_or("no epoch");
  report.figure_or_missing("colo_ms_p50", of_colo(0.5), "ms", no_colo);
  report.figure_or_missing("colo_ms_p99", of_colo(0.99), "ms", no_colo);
  Report phases("phases");
  for (const char* phase : kPausePhases) {
    const auto took = all.phases_ms.find(phase);
    if (took == all.phases_ms.end()) continue;
    phases.figure(fmt::format("{}_ms_p50", phase), quantile(took->second, 0.5), "ms");
    phases.figure(fmt::format("{}_ms_p99", phase), quantile(took->second, 0.99), "ms");
  }
  report.object("phases", std::move(phases));
}

}  // namespace

std::string PauseCase::title() const {
  return fmt::format("{} guest under {}, {} pages per epoch", guest, accel, pages);
}

std::vector<PauseCase> all_pause_cases() {
  // The guest must be able to write the pages between two epochs, beside a pause that grows with
  // them.
  struct Kind {
    const char* accel;
    const char* guest;
    std::array<int, 3> interval_ms;
  };
  constexpr std::array<unsigned, 3> kPages = {50, 2000, 20'000};
  constexpr Kind kKinds[] = {{"kvm", "bare", {100, 200, 1000}},
                             {"tcg", "bare", {50, 100, 400}},
                             {"tcg", "linux", {100, 200, 1000}}};
  std::vector<PauseCase> cases;
  for (const Kind& kind : kKinds) {
    for (std::size_t i = 0; i < kPages.size(); ++i) {
      cases.push_back({kind.accel, kind.guest, kPages[i], milliseconds(kind.interval_ms[i])});
    }
  }
  return cases;
}

test::GuestConfig bare_pause_guest(const std::string& accel, unsigned pages, milliseconds interval,
                                   unsigned ticks, unsigned report) {
  test::GuestConfig config;
  config.kind = test::GuestKind::bare;
  config.accelerator = accel == "kvm"   ? test::Accelerator::kvm
                       : accel == "tcg" ? test::Accelerator::tcg
                                        : test::Accelerator::automatic;
  // A quarter more than is written, so that no page is written twice in a late epoch.
  const unsigned arena_mib = std::max(kBareArenaMibMin, pages * kPageKib / 1024 * 5 / 4);
  config.memory_mib = arena_mib + kBareOverheadMib;
  config.witness = {fmt::format("arena_mib={}", arena_mib), "pattern=sequential",
                    fmt::format("report={}", report),
                    fmt::format("tick_us={}", interval.count() * 1000 / ticks),
                    fmt::format("pages={}", (pages + ticks - 1) / ticks)};
  return config;
}

PauseSizes pause_sizes(RunSize size) {
  using std::chrono::seconds;
  // Short turns: another load on the machine, which comes and goes, is then shared by both sides.
  switch (size) {
    case RunSize::quick:
      return {1, 3, 1, milliseconds(1500), seconds(2), 5};
    case RunSize::normal:
      return {10, 20, 15, milliseconds(5500), seconds(20), 50};
    case RunSize::full:
      break;
  }
  return {20, 25, 31, milliseconds(10500), seconds(60), 200};
}

Status measure_pause_case(const PauseCase& which, const PauseSizes& sizes, const Progress& progress,
                          Report& report) {
  Report item(which.title());
  item.text("accel", which.accel);
  item.text("guest", which.guest);
  item.figure("pages", which.pages, "written per epoch");
  item.figure("interval_ms", static_cast<double>(which.interval.count()), "ms");
  const test::GuestConfig config = which.guest == "bare"
                                       ? bare_pause_guest(which.accel, which.pages, which.interval)
                                       : linux_pause_guest(which);
  progress.step(which.title());
  Status measured = [&]() -> Status {
    VMSHADOW_ASSIGN(const auto ground, PauseGround::start(config));
    item.figure("guest_mib", static_cast<double>(test::guest_memory_kib(config)) / 1024, "MiB");
    Rounds rounds;
    VMSHADOW_TRY(run_rounds(which, sizes, progress, *ground, rounds));
    report_rounds(which, rounds, item);
    return {};
  }();
  if (!measured) {
    measured = missing_figures(item,
                               {"epochs", "floor_ratio_p50", "floor_ratio_p99", "colo_ratio_p50",
                                "pause_ms_p50", "pause_ms_p99", "phases"},
                               measured.error());
  }
  report.list_item("cases", std::move(item));
  return measured;
}

Status missing_figures(Report& report, std::initializer_list<const char*> keys,
                       const Error& error) {
  for (const char* key : keys) report.missing(key, error.message);
  const bool lacking = error.code == Errc::not_found || error.code == Errc::unsupported;
  return lacking ? Status{} : fail(error);
}

}  // namespace vmshadow::bench
