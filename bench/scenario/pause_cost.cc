// What protection costs beside the pauses: the guest's work, the sidecar's processor and memory;
// and whether the guest's own output shows the pauses that the monitor reports.
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <thread>

#include "base/statistics.h"
#include "capture/vm_events.h"
#include "qmp/session.h"
#include "scenario/pause_ground.h"
#include "scenario/pause_parts.h"
#include "support/discarding_secondary.h"
#include "support/process_figures.h"

namespace vmshadow::bench {
namespace {

using std::chrono::milliseconds;
using std::chrono::nanoseconds;

constexpr milliseconds kOncePerSecond{1000};
/// After attaching: what the first pass left behind is done with.
constexpr std::chrono::seconds kSettle{2};

// ---- the guest's work

/// A guest that writes without a rest.
test::GuestConfig greedy_guest() {
  test::GuestConfig config;
  config.witness = {"arena_mib=16", "pattern=uniform", "tick_us=0",
                    "pages=64",     "verify=0",        "report=50"};
  return config;
}

/// Pages the guest wrote, by its own count: per second of the host's time, and per second for which
/// QEMU had a processor. On a machine that does other things as well only the second one is steady.
struct GuestWork {
  double per_s{};
  double per_cpu_s{};
};

/// Notes the time and QEMU's use of processors, and tells the work since then.
class WorkMeter {
 public:
  [[nodiscard]] Status start(test::QemuGuest& guest) {
    guest_ = &guest;
    from_ = system_clock().monotonic();
    VMSHADOW_ASSIGN(cpu_before_, test::cpu_time_of(guest.process().pid()));
    return {};
  }
  [[nodiscard]] Result<GuestWork> stop() {
    VMSHADOW_ASSIGN(const nanoseconds cpu, test::cpu_time_of(guest_->process().pid()));
    const std::chrono::duration<double> passed = system_clock().monotonic() - from_;
    VMSHADOW_ASSIGN(auto reports, guest_->reports());
    std::erase_if(reports, [&](const test::WitnessReport& r) { return r.stamp < from_; });
    if (reports.size() < 2) return fail(Errc::timed_out, "the guest printed nothing");
    GuestWork work;
    work.per_s = test::examine_run(reports).writes_per_s;
    const std::chrono::duration<double> used = cpu - cpu_before_;
    work.per_cpu_s = work.per_s * passed.count() / used.count();
    return work;
  }

 private:
  test::QemuGuest* guest_ = nullptr;
  MonotonicTime from_;
  nanoseconds cpu_before_{};
};

Result<GuestWork> work_under_floor(PauseGround& ground, milliseconds span) {
  capture::VmEvents events;
  qmp::SessionOptions options;
  options.on_event = [&events](const qmp::Event& event) { events.handle(event); };
  VMSHADOW_ASSIGN(const auto session, qmp::Session::connect(ground.guest().qmp_path(), options));
  DiscardingSecondary secondary(*session, events);
  VMSHADOW_TRY(secondary.attach());
  WorkMeter meter;
  VMSHADOW_TRY(meter.start(ground.guest()));
  const auto start = std::chrono::steady_clock::now();
  for (auto next = start + kOncePerSecond; next < start + span; next += kOncePerSecond) {
    std::this_thread::sleep_until(next);
    VMSHADOW_TRY(secondary.take_epoch());
  }
  std::this_thread::sleep_until(start + span);
  VMSHADOW_ASSIGN(const GuestWork work, meter.stop());
  VMSHADOW_TRY(secondary.detach());
  return work;
}

Result<GuestWork> work_under_vmshadow(PauseGround& ground, milliseconds span) {
  VMSHADOW_ASSIGN(auto sidecar, ground.start_sidecar(kOncePerSecond));
  WorkMeter meter;
  VMSHADOW_TRY(meter.start(ground.guest()));
  std::this_thread::sleep_for(span);
  VMSHADOW_ASSIGN(const GuestWork work, meter.stop());
  VMSHADOW_TRY(sidecar.stop());
  return work;
}

/// Of every round.
struct WorkRounds {
  std::vector<double> per_s, per_cpu_s;
  void add(const GuestWork& work) {
    per_s.push_back(work.per_s);
    per_cpu_s.push_back(work.per_cpu_s);
  }
};
Status compare_work(const PauseSizes& sizes, const Progress& progress, WorkRounds& ours,
                    WorkRounds& floor) {
  VMSHADOW_ASSIGN(const auto ground, PauseGround::start(greedy_guest()));
  for (unsigned round = 0; round < sizes.work_rounds; ++round) {
    progress.step("guest work, round", round + 1, sizes.work_rounds);
    for (const bool floor_now : {round % 2 == 0, round % 2 != 0}) {
      VMSHADOW_ASSIGN(const GuestWork work, floor_now
                                                ? work_under_floor(*ground, sizes.work_span)
                                                : work_under_vmshadow(*ground, sizes.work_span));
      (floor_now ? floor : ours).add(work);
    }
  }
  return {};
}

// ---- the sidecar's own use

/// Guard and worker together.
template <class Figure>
Result<double> of_both(const test::SidecarProgram& sidecar, pid_t guard, Figure figure) {
  VMSHADOW_ASSIGN(const pid_t worker, sidecar.worker_pid());
  VMSHADOW_ASSIGN(const auto of_guard, figure(guard));
  VMSHADOW_ASSIGN(const auto of_worker, figure(worker));
  return of_guard + of_worker;
}
Result<double> cpu_seconds_of(pid_t pid) {
  VMSHADOW_ASSIGN(const nanoseconds used, test::cpu_time_of(pid));
  return std::chrono::duration<double>(used).count();
}
Result<double> peak_mib_of(pid_t pid) {
  VMSHADOW_ASSIGN(const test::Resident resident, test::resident_bytes(pid));
  return static_cast<double>(resident.peak) / (1 << 20);
}

struct IdleUse {
  double cpu_percent{};
  double mib{};
};
Result<IdleUse> idle_use(const PauseSizes& sizes) {
  test::GuestConfig config;
  config.witness = {"pages=0", "verify=0", "tick_us=100000", "report=10"};
  VMSHADOW_ASSIGN(const auto ground, PauseGround::start(config));
  VMSHADOW_ASSIGN(auto sidecar, ground->start_sidecar(kOncePerSecond));
  const pid_t guard = sidecar.process().pid();
  std::this_thread::sleep_for(kSettle);
  const auto from = std::chrono::steady_clock::now();
  VMSHADOW_ASSIGN(const double before, of_both(sidecar, guard, cpu_seconds_of));
  std::this_thread::sleep_for(sizes.idle_span);
  VMSHADOW_ASSIGN(const double after, of_both(sidecar, guard, cpu_seconds_of));
  const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - from;
  IdleUse use;
  use.cpu_percent = 100 * (after - before) / passed.count();
  VMSHADOW_ASSIGN(use.mib, of_both(sidecar, guard, peak_mib_of));
  VMSHADOW_TRY(sidecar.stop());
  return use;
}

struct MemoryUse {
  double mib{};
  double guest_mib{};
  double epoch_mib{};  ///< pages of the largest epoch
};
Result<MemoryUse> memory_use(const PauseSizes& sizes) {
  constexpr unsigned kManyPages = 20'000;
  constexpr milliseconds kEvery{400};
  const auto config = bare_pause_guest("auto", kManyPages, kEvery);
  VMSHADOW_ASSIGN(const auto ground, PauseGround::start(config));
  VMSHADOW_ASSIGN(auto sidecar, ground->start_sidecar(kEvery));
  std::this_thread::sleep_for(sizes.idle_span);
  MemoryUse use;
  VMSHADOW_ASSIGN(use.mib, of_both(sidecar, sidecar.process().pid(), peak_mib_of));
  use.guest_mib = static_cast<double>(test::guest_memory_kib(config)) / 1024;
  for (const auto& line : sidecar.lines()) {
    if (line.value("event", "") != "epoch" || line.at("first_pass").get<bool>()) continue;
    use.epoch_mib = std::max(use.epoch_mib, line.at("raw_bytes").get<double>() / (1 << 20));
  }
  VMSHADOW_TRY(sidecar.stop());
  return use;
}

// ---- the guest's output

struct OutputGaps {
  std::vector<double> pause_ms;
  std::vector<double> gap_ms;  ///< of the same pauses
  double spacing_ms{};         ///< usual, between two lines
};

/// For each pause the silence on the console around its middle.
OutputGaps match_gaps(const std::vector<test::PauseLog::Pause>& pauses,
                      const std::vector<test::WitnessReport>& reports) {
  const auto ms_between = [](MonotonicTime from, MonotonicTime to) {
    return std::chrono::duration<double, std::milli>(to - from).count();
  };
  OutputGaps gaps;
  std::vector<double> spacings;
  for (std::size_t i = 1; i < reports.size(); ++i) {
    spacings.push_back(ms_between(reports[i - 1].stamp, reports[i].stamp));
  }
  gaps.spacing_ms = quantile(spacings, 0.5);
  for (const auto& pause : pauses) {
    const MonotonicTime at = test::monotonic_of((pause.stop + pause.resume) / 2);
    const auto after = std::find_if(reports.begin(), reports.end(),
                                    [&](const auto& report) { return report.stamp > at; });
    if (after == reports.begin() || after == reports.end()) continue;
    gaps.pause_ms.push_back(static_cast<double>((pause.resume - pause.stop).count()) / 1000);
    gaps.gap_ms.push_back(ms_between(std::prev(after)->stamp, after->stamp));
  }
  return gaps;
}

Result<OutputGaps> output_gaps(const PauseSizes& sizes) {
  // A line every 2 ms: the silence between two is then mostly the pause.
  constexpr unsigned kPages = 2000;
  constexpr milliseconds kEvery{100};
  VMSHADOW_ASSIGN(const auto ground,
                  PauseGround::start(bare_pause_guest("auto", kPages, kEvery, 50, 1)));
  VMSHADOW_TRY(ground->run(Contender::vmshadow, sizes.output_epochs, kEvery));
  VMSHADOW_ASSIGN(const auto reports, ground->guest().reports());
  auto pauses = ground->pauses();
  // The first is the first pass's.
  if (!pauses.empty()) pauses.erase(pauses.begin());
  return match_gaps(pauses, reports);
}

}  // namespace

Status measure_guest_work(const PauseSizes& sizes, const Progress& progress, Report& report) {
  WorkRounds ours;
  WorkRounds floor;
  if (auto status = compare_work(sizes, progress, ours, floor); !status) {
    return missing_figures(report, {"guest_work_ratio", "guest_work_per_cpu_ratio"},
                           status.error());
  }
  const std::string few = fmt::format("fewer than {} rounds", kPairsMin);
  report.figure_or_missing("guest_work_ratio", median_ratio(ours.per_s, floor.per_s), "", few,
                           ">= 0.97");
  report.figure_or_missing("guest_work_per_cpu_ratio",
                           median_ratio(ours.per_cpu_s, floor.per_cpu_s),
                           "per second that QEMU ran", few);
  report.figure("guest_work_rounds", static_cast<double>(ours.per_s.size()), "");
  report.figure("guest_work_pages_per_s", quantile(ours.per_s, 0.5), "pages/s");
  report.figure("floor_work_pages_per_s", quantile(floor.per_s, 0.5), "pages/s");
  // How far the floor's own rounds lie apart: within that, a ratio says nothing.
  report.figure("floor_work_spread", quantile(floor.per_s, 0.75) / quantile(floor.per_s, 0.25),
                "third quartile / first");
  return {};
}

Status measure_idle_cpu(const PauseSizes& sizes, const Progress& progress, Report& report) {
  progress.step("an idle guest");
  const auto use = idle_use(sizes);
  if (!use) return missing_figures(report, {"idle_cpu_percent", "idle_memory_mib"}, use.error());
  report.figure("idle_cpu_percent", use->cpu_percent, "% of a core", "<= 1");
  report.figure("idle_memory_mib", use->mib, "MiB at its peak");
  return {};
}

Status measure_sidecar_memory(const PauseSizes& sizes, const Progress& progress, Report& report) {
  // What may wait for the encoder: so much, and one epoch more (ship/epoch_shipper.h).
  constexpr double kQueuedMib = 64;
  progress.step("the sidecar's memory");
  const auto use = memory_use(sizes);
  if (!use) {
    return missing_figures(report, {"sidecar_memory_mib", "sidecar_memory_bound_mib"}, use.error());
  }
  const double window = kQueuedMib + use->epoch_mib;
  const double bound = 64 + 0.02 * use->guest_mib + window;
  report.figure("sidecar_memory_mib", use->mib, "MiB at its peak", fmt::format("<= {:.0f}", bound));
  report.figure("encode_window_mib", window, "MiB (64 queued, and one epoch)");
  report.figure("sidecar_memory_bound_mib", bound, "MiB (64 + 2 % of the guest + the window)");
  return {};
}

Status measure_output_gaps(const PauseSizes& sizes, const Progress& progress, Report& report) {
  progress.step("the guest's output");
  const auto gaps = output_gaps(sizes);
  if (!gaps) {
    return missing_figures(report, {"output_pauses", "output_pause_ms_p50", "output_gap_ms_p50"},
                           gaps.error());
  }
  report.figure("output_pauses", static_cast<double>(gaps->pause_ms.size()), "");
  report.figure("output_pause_ms_p50", quantile(gaps->pause_ms, 0.5), "ms by the monitor");
  report.figure("output_gap_ms_p50", quantile(gaps->gap_ms, 0.5), "ms without a line");
  report.figure("output_spacing_ms_p50", gaps->spacing_ms, "ms between two lines");
  return {};
}

}  // namespace vmshadow::bench
