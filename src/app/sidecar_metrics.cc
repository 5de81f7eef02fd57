#include "app/sidecar_metrics.h"

#include <array>

#include "app/metrics_page.h"

namespace vmshadow::app {
namespace {

using capture::CaptureKind;
using capture::GuardCounts;

double seconds_of_us(std::int64_t us) { return static_cast<double>(us) / 1e6; }
double seconds_of_ns(std::int64_t ns) { return static_cast<double>(ns) / 1e9; }
double number(const SidecarFigures::Count& count) { return static_cast<double>(count.load()); }

void add_protection(MetricsPage& page, const SidecarFigures& figures, const Clock& clock) {
  page.gauge("vmshadow_protected",
             "1 while a worker takes epochs and the store has committed one of its own, else 0.",
             figures.is_protected() ? 1 : 0);
  if (const std::int64_t cut = figures.committed_cut_ns; cut != 0) {
    page.gauge("vmshadow_lag_seconds",
               "Since the cut of the newest committed epoch: what would be lost if this host died "
               "now. Grows on while nothing is committed, whatever the reason.",
               seconds_of_ns((clock.monotonic() - MonotonicTime{cut}).count()));
    page.gauge("vmshadow_committed_cut_timestamp_seconds",
               "When the newest committed epoch was cut, in seconds since 1970.",
               seconds_of_ns(figures.committed_cut_wall_ns));
    page.gauge("vmshadow_committed_epoch", "Number of the newest committed epoch.",
               number(figures.committed_epoch));
  }
  if (figures.generation != 0) {
    page.gauge("vmshadow_generation", "Generation that the store granted last.",
               number(figures.generation));
  }
  const int source = figures.source;
  for (const CaptureKind kind : {CaptureKind::colo, CaptureKind::full_pass}) {
    page.gauge("vmshadow_source", "1 for the way in which epochs are taken, else 0.",
               source == static_cast<int>(kind) ? 1 : 0, {{"source", capture::text_of(kind)}});
  }
}

void add_epochs(MetricsPage& page, const SidecarFigures& figures) {
  page.counter("vmshadow_epochs_committed_total", "Epochs that the store has made durable.",
               number(figures.epochs));
  page.counter("vmshadow_epochs_refused_total",
               "Tries to take an epoch that was due which the VM's state did not allow: suspended, "
               "panicked, somebody else's migration.",
               number(figures.epochs_refused));
  page.counter("vmshadow_epochs_merged_total",
               "Epochs that were due while those before were still being taken or shipped: what "
               "changed is in the next one.",
               number(figures.epochs_merged));
  page.counter("vmshadow_first_passes_total",
               "First epochs of a protection that were committed, each a pass over all RAM.",
               number(figures.first_passes));
  if (figures.first_passes != 0) {
    page.gauge("vmshadow_first_pass_seconds", "How long the newest first pass took.",
               seconds_of_us(figures.first_pass_us));
  }
  if (figures.epochs > figures.first_passes) {
    page.gauge("vmshadow_dirty_pages",
               "Pages (4 KiB) of the newest epoch behind a first pass that had changed.",
               number(figures.dirty_pages));
  }
  const char* const pages_help =
      "Pages of committed epochs: stored as data, stored as zero, dropped as unchanged.";
  page.counter("vmshadow_pages_total", pages_help, number(figures.data_pages), {{"kind", "data"}});
  page.counter("vmshadow_pages_total", pages_help, number(figures.zero_pages), {{"kind", "zero"}});
  page.counter("vmshadow_pages_total", pages_help, number(figures.unchanged_pages),
               {{"kind", "unchanged"}});
  page.counter("vmshadow_raw_bytes_total",
               "Bytes of the pages that QEMU sent for committed epochs.",
               number(figures.raw_bytes));
  page.counter("vmshadow_shipped_bytes_total", "Bytes of records shipped for committed epochs.",
               number(figures.shipped_bytes));
  page.counter("vmshadow_device_bytes_total", "Bytes of device state in committed epochs.",
               number(figures.device_bytes));
}

void add_durations(MetricsPage& page, const SidecarFigures& figures) {
  page.histogram("vmshadow_pause_seconds",
                 "How long the guest stood still for an epoch, by QEMU's stamps; first passes and "
                 "epochs whose pause was not seen are left out.",
                 figures.pause.counts());
  page.counter("vmshadow_pauses_unknown_total",
               "Epochs whose pause was not seen (an event of the monitor's is missing).",
               number(figures.pauses_unknown));
  for (std::size_t i = 0; i < kEpochPhases.size(); ++i) {
    page.histogram("vmshadow_epoch_phase_seconds",
                   "Phases of the same epochs: request (the guest runs), stop, cut, ram, device, "
                   "resume.",
                   figures.phases[i].counts(), {{"phase", std::string(kEpochPhases[i].name)}});
  }
  page.histogram("vmshadow_commit_seconds",
                 "From an epoch's cut until the store has it durable; without first passes.",
                 figures.commit.counts());
  page.histogram("vmshadow_peak_lag_seconds",
                 "The lag just before each commit; without first passes.",
                 figures.peak_lag.counts());
  page.histogram("vmshadow_pass_seconds",
                 "How long a pass over all RAM took; counts under --source full-pass alone, "
                 "without first passes.",
                 figures.pass.counts());
}

void add_pace(MetricsPage& page, const SidecarFigures& figures) {
  if (const std::int64_t interval = figures.interval_us; interval != 0) {
    page.gauge("vmshadow_epoch_interval_seconds",
               "From asking for one epoch to asking for the next.", seconds_of_us(interval));
  }
  if (const std::int64_t target = figures.target_lag_us; target != 0) {
    page.gauge("vmshadow_target_lag_seconds", "The lag that was asked for (--target-lag-ms).",
               seconds_of_us(target));
    page.gauge("vmshadow_target_lag_held",
               "1 while that lag is held within the budgets, 0 while it cannot be.",
               figures.target_lag_held ? 1 : 0);
  }
  if (const std::int64_t holds = figures.holds_lag_us; holds != 0) {
    page.gauge("vmshadow_holdable_lag_seconds",
               "The shortest lag that full passes can hold, one right behind the other.",
               seconds_of_us(holds));
  }
  page.gauge("vmshadow_queue_bytes",
             "Page memory that waits to be encoded and shipped; looked at about once a second.",
             number(figures.queue_bytes));
  page.gauge("vmshadow_unacknowledged_epochs",
             "Epochs that are cut and not committed yet; looked at about once a second.",
             number(figures.unacknowledged_epochs));
  page.gauge("vmshadow_encoder_acceleration",
             "lz4's acceleration: 1 as usual, more while processors are wanted (less work, less "
             "compression).",
             figures.acceleration);
  if (const double pressure = figures.cpu_pressure_percent; pressure >= 0) {
    page.gauge("vmshadow_cpu_pressure_ratio",
               "Share of the last ten seconds in which something waited for a processor of this "
               "host (/proc/pressure/cpu).",
               pressure / 100);
  }
}

void add_guard(MetricsPage& page, const SidecarFigures& figures, const SidecarFacts& facts) {
  page.gauge("vmshadow_pause_deadline_seconds", "The guard ends a longer pause.",
             std::chrono::duration<double>(facts.pause_deadline).count());
  const std::uint64_t started = figures.guard.workers_started;
  page.counter("vmshadow_worker_restarts_total", "Workers started after the first one.",
               static_cast<double>(started > 0 ? started - 1 : 0));
  constexpr std::array<const char*, GuardCounts::kKills> kReasons = {"pause_deadline", "stopped",
                                                                     "silent"};
  for (std::size_t i = 0; i < kReasons.size(); ++i) {
    page.counter("vmshadow_guard_kills_total",
                 "Workers that the guard has killed: they kept the VM stopped beyond the deadline, "
                 "were stopped themselves, or showed no sign of life.",
                 number(figures.guard.killed[i]), {{"reason", kReasons[i]}});
  }
  page.counter("vmshadow_guard_releases_total",
               "How often the guard has ended a dead worker's capture of the VM.",
               number(figures.guard.releases));
}

}  // namespace

std::string sidecar_metrics(const SidecarFigures& figures, const SidecarFacts& facts,
                            const Clock& clock) {
  MetricsPage page(MetricsPage::Labels{{"vm", facts.vm_name}});
  page.gauge("vmshadow_build_info", "1; the program's version is a label.", 1,
             {{"program", "vmshadow-sidecar"}, {"version", VMSHADOW_VERSION}});
  page.as_of(clock.wall());
  add_protection(page, figures, clock);
  add_epochs(page, figures);
  add_durations(page, figures);
  add_pace(page, figures);
  add_guard(page, figures, facts);
  return page.text();
}

}  // namespace vmshadow::app
