#include "app/sidecar.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <spdlog/spdlog.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <utility>

#include "base/say.h"
#include "capture/abandoned_capture.h"
#include "capture/capture_choice.h"
#include "capture/colo_probe.h"
#include "capture/colo_source.h"
#include "capture/colo_versions.h"
#include "capture/disk_capture.h"
#include "capture/disk_mirror.h"
#include "capture/full_pass_source.h"
#include "capture/release_vm.h"
#include "capture/vm_claim.h"
#include "capture/vm_events.h"
#include "io/cpu_pressure.h"
#include "qmp/session.h"
#include "ship/encode_effort.h"
#include "ship/epoch_shipper.h"

namespace vmshadow::app {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kRoomPatience{100};
constexpr milliseconds kTickEvery{1000};
constexpr milliseconds kFlushPatience{15000};
constexpr milliseconds kFlushPatienceVmGone{5000};
constexpr milliseconds kRetryWhilePaused{200};
constexpr milliseconds kStaleSessionPatience{2000};

void say(const std::string& sentence) { vmshadow::say("vmshadow-sidecar", sentence); }

std::chrono::microseconds processor_time() {
  timespec used{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
  return std::chrono::duration_cast<std::chrono::microseconds>(
      std::chrono::seconds(used.tv_sec) + std::chrono::nanoseconds(used.tv_nsec));
}

struct Protection {
  const SidecarOptions& options;
  const StopSignal& stop;
  capture::GuardFlags& flags;
  SidecarFigures& figures;
  EpochLedger& ledger;
  EpochPacer& pacer;
  ship::EpochShipper& shipper;
  PageSource& source;
  const capture::CaptureChoice& choice;
  qmp::Session& session;
  capture::DiskCapture* disks;  // null: there are none
  std::FILE* report;
  io::Deadline next_tick = io::deadline_after(kTickEvery);
  ship::EncodeEffort effort{};

  [[nodiscard]] Status run();
  /// Shows the lag and looks for failures, once a second.
  [[nodiscard]] Status tick();
  /// Both: false if told to stop meanwhile.
  [[nodiscard]] Result<bool> wait_until(io::Deadline when);
  [[nodiscard]] Result<bool> wait_for_room();
  void announce(const EpochStats& first) const;
};

void Protection::announce(const EpochStats& first) const {
  flags.protected_from(system_clock().monotonic());
  figures.taken_by = flags.worker;
  if (options.report == ReportStyle::json_lines) {
    nlohmann::json line{{"event", "attached"},
                        {"vm", options.vm_name},
                        {"generation", shipper.generation().value},
                        {"epoch", first.epoch.value},
                        {"pages", first.pages},
                        {"source", text_of(choice.kind)}};
    if (!choice.why.empty()) line["why"] = choice.why;
    const auto base = shipper.builds_on();
    line["builds_on"] = base ? nlohmann::json(base->value) : nlohmann::json(nullptr);
    fmt::print(report, "{}\n", line.dump());
    std::fflush(report);
  } else {
    const auto base = shipper.builds_on();
    spdlog::info("VM '{}' attached: generation {}, first pass {} pages in {} ms{}", options.vm_name,
                 shipper.generation().value, first.pages, first.ram.count() / 1000,
                 base ? fmt::format(", compared with epoch {}", base->value) : std::string());
  }
}

// Whatever the loop waits for, the lag goes on: it is shown every second, and a link or a monitor
// that has failed is noticed then, not at the next epoch.
Status Protection::tick() {
  flags.beat();
  const auto now = io::Deadline::clock::now();
  if (now < next_tick) return {};
  next_tick = now + kTickEvery;
  ledger.tick(shipper.lag());
  const auto pressure = io::cpu_pressure();
  figures.cpu_pressure_percent = pressure.value_or(-1);
  if (pressure) {
    const int acceleration = effort.acceleration(*pressure);
    shipper.set_acceleration(acceleration);
    figures.acceleration = acceleration;
  }
  figures.queue_bytes = shipper.queued_bytes();
  figures.unacknowledged_epochs = shipper.unacknowledged();
  if (auto failure = shipper.failure()) return fail(std::move(*failure));
  if (auto closed = session.closed()) return fail(std::move(*closed));
  if (disks != nullptr && flags.protected_since_ns != 0) return disks->check();
  return {};
}

Result<bool> Protection::wait_until(io::Deadline when) {
  for (;;) {
    if (stop.wait(std::min(when, next_tick))) return false;
    VMSHADOW_TRY(tick());
    if (io::Deadline::clock::now() >= when) return true;
  }
}

Result<bool> Protection::wait_for_room() {
  for (;;) {
    VMSHADOW_ASSIGN(const bool room, shipper.wait_for_room(kRoomPatience));
    if (room) return true;
    if (stop.wait(io::deadline_after({}))) return false;
    VMSHADOW_TRY(tick());
  }
}

// Ends with success when told to, with an error when protection cannot go on.
Status Protection::run() {
  auto first = source.attach(shipper, shipper.first_epoch());
  if (!first && first.error().code == Errc::cancelled) return {};
  if (!first) return fail(std::move(first).error());
  ledger.taken(*first);
  announce(*first);

  bool paused_said = false;
  auto next = io::Deadline::clock::now() + pacer.interval();
  for (std::uint64_t taken = 0; !options.epochs || taken < *options.epochs;) {
    VMSHADOW_ASSIGN(const bool due, wait_until(next));
    if (!due) return {};
    VMSHADOW_ASSIGN(const bool room, wait_for_room());
    if (!room) return {};
    const auto asked_by_clock = io::Deadline::clock::now();
    // How often one was due while those before were being taken or shipped.
    figures.epochs_merged += static_cast<std::uint64_t>(
        std::max(asked_by_clock - next, io::Deadline::duration{}) / pacer.interval());
    const MonotonicTime asked = system_clock().monotonic();
    auto stats = source.take_epoch();
    if (!stats) {
      if (stats.error().code != Errc::cancelled) return fail(std::move(stats).error());
      ++figures.epochs_refused;
      if (!std::exchange(paused_said, true)) spdlog::warn("{}", stats.error().message);
      next = io::deadline_after(kRetryWhilePaused);
      continue;
    }
    paused_said = false;
    pacer.taken(*stats, asked, processor_time());
    ledger.paced(pacer.report());
    ledger.taken(*stats);
    // From the time of asking, so that a slow epoch is not followed by a burst.
    next = std::max(next + pacer.interval(), asked_by_clock);
    ++taken;
  }
  return {};
}

qmp::SessionOptions with_events(capture::VmEvents& events) {
  qmp::SessionOptions options;
  options.on_event = [&events](const qmp::Event& event) { events.handle(event); };
  return options;
}

capture::ColoOptions colo_options(const StopSignal& stop, capture::GuardFlags& flags,
                                  EpochLedger& ledger, capture::DiskCapture* disks,
                                  const std::function<Status()>& tick) {
  capture::ColoOptions options;
  options.disks = disks;
  options.on_follow = [&tick] { return tick(); };
  options.on_attach = [&flags](const capture::MigrationSettings& before) { flags.arm(before); };
  options.cancelled = [&stop, &flags] {
    flags.beat();
    return stop.wait(io::deadline_after({}));
  };
  options.on_first_pass = [&ledger](std::uint64_t pages) { ledger.first_pass(pages); };
  options.stopped_since_ns = &flags.stopped_since_ns;
  return options;
}

capture::DiskCaptureOptions disk_options(const SidecarOptions& options,
                                         const capture::GuardFlags& flags, EpochLedger& ledger) {
  capture::DiskCaptureOptions to;
  to.held_bytes_max = options.disk_buffer_bytes;
  to.to_guard = flags.to_guard;
  to.on_copy = [&ledger](std::uint64_t done, std::uint64_t total) {
    ledger.copying_disks(done, total);
  };
  return to;
}

capture::FullPassOptions full_pass_options(const SidecarOptions& options, const StopSignal& stop,
                                           capture::GuardFlags& flags, EpochLedger& ledger,
                                           const std::function<Status()>& tick) {
  capture::FullPassOptions to;
  // As much behind the guard's deadline as the cadence keeps.
  to.pause_most = options.pause_deadline / 2;
  to.on_pass_begin = [&flags](const capture::MigrationSettings& before) { flags.arm(before); };
  to.on_pass_end = [&flags] { flags.migrating = false; };
  to.cancelled = [&stop, &flags] {
    flags.beat();
    return stop.wait(io::deadline_after({}));
  };
  to.on_progress = [&flags, &ledger, &tick, told = MonotonicTime{}](std::uint64_t pages) mutable {
    if (flags.protected_since_ns != 0) return tick();
    const MonotonicTime now = system_clock().monotonic();
    if (now - told >= kTickEvery) {
      told = now;
      ledger.first_pass(pages);
    }
    return Status{};
  };
  to.stopped_since_ns = &flags.stopped_since_ns;
  to.resume_owed = &flags.resume_owed;
  return to;
}

/// No VM has more RAM than twice what its host has.
std::uint64_t ram_bytes_max() {
  return 2 * static_cast<std::uint64_t>(::sysconf(_SC_PHYS_PAGES)) *
         static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
}

ship::ShipperOptions shipper_options(const SidecarOptions& options, const StopSignal& stop,
                                     capture::GuardFlags& flags, EpochLedger& ledger) {
  ship::ShipperOptions to;
  to.encoder_priority = options.encoder_priority;
  to.build_on_committed = !options.ship_all;
  to.ram_bytes_max = ram_bytes_max();
  to.on_base_progress = [&ledger](const ship::BaseProgress& progress) {
    ledger.asking_store(progress);
  };
  to.cancelled = [&stop, &flags] {
    flags.beat();
    return stop.wait(io::deadline_after({}));
  };
  return to;
}

/// What another try would not change.
bool is_final(const Error& error) {
  return error.code == Errc::unsupported || error.code == Errc::version ||
         error.code == Errc::stale_generation;
}

/// What ends a first start, but not a protection that has begun: a VM that is suspended just now, a
/// store that has not yet seen the session before end.
int ends_first_start(const capture::GuardFlags& flags, const Error& error) {
  return flags.restarts == 0 || is_final(error) ? kExitFailed : capture::kWorkerTryAgain;
}

bool is_gone(const Error& error) {
  return error.code == Errc::closed || error.code == Errc::not_found;
}

/// A session of this VM's that has just died may not have ended at the store yet: bears with it for
/// a moment.
Result<std::unique_ptr<ship::EpochShipper>> connect_shipper(
    const SidecarOptions& options, const StopSignal& stop,
    const ship::EpochShipper::CommitHandler& on_commit, const ship::ShipperOptions& how) {
  const auto patience = io::deadline_after(kStaleSessionPatience);
  for (;;) {
    auto shipper =
        ship::EpochShipper::connect(options.store, options.vm_name, system_clock(), on_commit, how);
    const bool stale = !shipper && shipper.error().code == Errc::in_use;
    if (!stale || io::Deadline::clock::now() >= patience) return shipper;
    if (stop.wait(io::deadline_after(kRetryWhilePaused))) return shipper;
  }
}

enum class VmFate { runs_on, gone, unknown };

// A monitor's connection can end without its VM: see whether QEMU still listens, and if so release
// it.
VmFate after_lost_monitor(const std::string& qmp_path, capture::GuardFlags& flags) {
  auto again = qmp::Session::connect(qmp_path);
  if (!again) {
    return is_gone(again.error()) ? VmFate::gone : VmFate::unknown;
  }
  if (flags.migrating) {
    if (!capture::release_vm(**again, flags.resume_owed)) return VmFate::unknown;
    const auto settings = capture::MigrationSettings::parse(flags.settings.data());
    if (settings && !settings->restore(**again)) return VmFate::unknown;
  }
  if (flags.mirroring && !capture::end_mirrors(**again)) return VmFate::unknown;
  return VmFate::runs_on;
}

std::string newest_committed(const EpochLedger& ledger) {
  const auto last = ledger.summary().last;
  return last ? fmt::format("the newest committed epoch is {}", last->value)
              : std::string("no epoch was committed");
}

}  // namespace

int run_sidecar(const SidecarOptions& options, const StopSignal& stop, capture::GuardFlags& flags,
                SidecarFigures& figures, std::FILE* report) {
  capture::VmEvents events;
  auto session = qmp::Session::connect(options.qmp_path, with_events(events));
  if (!session) {
    say(session.error().message);
    const bool gone = flags.restarts > 0 && is_gone(session.error());
    return gone ? kExitVmGone : ends_first_start(flags, session.error());
  }
  // Without it the guard would have to wait until we are dead: it still guards.
  if (auto passed = (*session)->pass_connection(flags.to_guard, io::deadline_after(kRoomPatience));
      !passed) {
    spdlog::warn("the guard cannot cut our monitor connection: {}", passed.error().message);
  }
  const auto claim = capture::VmClaim::take(**session);
  if (claim && *claim) {
    // No capture of it lives: what a dead one has left standing still goes first.
    const auto released = capture::release_abandoned(**session);
    if (!released) {
      say(fmt::format(
          "VM '{}' was left by a vmshadow-sidecar that was killed, and may stand still: "
          "it could not be released: {}",
          options.vm_name, released.error().message));
      return is_final(released.error()) ? kExitFailed : capture::kWorkerTryAgain;
    }
    if (*released) say(**released);
  }
  // Before the store grants a generation for a VM that cannot be captured anyway.
  Status able = claim ? Status{} : Status{fail(claim.error())};
  capture::CaptureChoice choice;
  if (able) {
    auto chosen = capture::choose_capture(**session, options.source);
    if (chosen) {
      choice = *std::move(chosen);
      able = capture::probe_vm(**session);
    } else {
      able = fail(std::move(chosen).error());
    }
  }
  bool with_disks = false;
  if (able && !options.ignore_disks) {
    auto found = capture::has_disks_to_protect(**session, choice);
    with_disks = found.value_or(false);
    if (!found) able = fail(std::move(found).error());
  }
  if (!able) {
    say(fmt::format("VM '{}' cannot be protected: {}", options.vm_name, able.error().message));
    return ends_first_start(flags, able.error());
  }
  if (!choice.why.empty()) spdlog::info("VM '{}': {}", options.vm_name, choice.why);
  if (options.guard_qmp_path.empty() && choice.kind == capture::CaptureKind::colo &&
      capture::colo_version((*session)->version()).monitor_waits_for_sends) {
    spdlog::info(
        "QEMU {} does not hear its monitor while it sends to us: a second one, for the "
        "guard (--guard-qmp), is advised",
        (*session)->version().text());
  }

  figures.source = static_cast<int>(choice.kind);
  EpochLedger ledger(options.report, report, figures);
  EpochPacer pacer(options.interval, options.cadence);
  figures.paced(pacer.report());
  auto shipper = connect_shipper(
      options, stop,
      [&ledger, &pacer, &figures, worker = flags.worker](const ship::CommittedEpoch& epoch) {
        figures.durable(epoch, worker);
        pacer.durable(epoch);
        ledger.committed(epoch);
      },
      shipper_options(options, stop, flags, ledger));
  if (!shipper) {
    if (shipper.error().code == Errc::cancelled) return kExitOk;  // nothing was touched yet
    say(shipper.error().message);
    // A store that is not there yet will be; a VM of this name that is shadowed already is a
    // mistake.
    return shipper.error().code == Errc::in_use || is_final(shipper.error())
               ? ends_first_start(flags, shipper.error())
               : capture::kWorkerTryAgain;
  }

  figures.generation = (*shipper)->generation().value;
  std::unique_ptr<capture::DiskCapture> disks;
  if (with_disks) {
    flags.mirroring = true;
    auto begun = capture::DiskCapture::begin(**session, disk_options(options, flags, ledger));
    if (!begun) {
      // Also what QEMU did only after it was no longer waited for.
      if (capture::end_mirrors(**session)) flags.mirroring = false;
      say(fmt::format("VM '{}' cannot be protected: {}", options.vm_name, begun.error().message));
      return ends_first_start(flags, begun.error());
    }
    disks = *std::move(begun);
  }
  std::function<Status()> tick;
  const std::unique_ptr<PageSource> source = [&]() -> std::unique_ptr<PageSource> {
    if (choice.kind == capture::CaptureKind::colo) {
      return std::make_unique<capture::ColoSource>(
          **session, events, system_clock(), colo_options(stop, flags, ledger, disks.get(), tick));
    }
    return std::make_unique<capture::FullPassSource>(
        **session, events, system_clock(), full_pass_options(options, stop, flags, ledger, tick));
  }();
  Protection protection{options,   stop,    flags,  figures,   ledger,      pacer,
                        **shipper, *source, choice, **session, disks.get(), report};
  tick = [&protection] { return protection.tick(); };
  const Status status = protection.run();
  figures.taken_by = 0;
  // The VM first, then what is still on its way to the store.
  Status released = source->detach();
  if (disks) {
    auto left = disks->stop();
    if (released && !left) released = std::move(left);
  }
  VmFate fate = released ? VmFate::runs_on : VmFate::unknown;
  const auto monitor_lost = (*session)->closed();
  if (monitor_lost) {
    fate = after_lost_monitor(options.qmp_path, flags);
    if (fate == VmFate::runs_on) released = {};
  }
  if (fate == VmFate::unknown) {
    // The guard does not wait for the store: it takes over as soon as we end.
    say(fmt::format("VM '{}' was not released: {}", options.vm_name,
                    monitor_lost ? monitor_lost->message : released.error().message));
    return capture::kWorkerTryAgain;
  }
  flags.migrating = false;
  flags.mirroring = false;
  (*shipper)->hurry();
  const Status flushed =
      (*shipper)->flush(fate == VmFate::gone ? kFlushPatienceVmGone : kFlushPatience);
  ledger.print_summary((*shipper)->lag());

  if (fate == VmFate::gone) {
    say(fmt::format("the monitor of VM '{}' is gone ({}); {}", options.vm_name,
                    monitor_lost->message, newest_committed(ledger)));
    return kExitVmGone;
  }
  if (!status) {
    const bool ends = options.once || is_final(status.error());
    say(fmt::format("VM '{}' is no longer protected: {}; the VM runs on, {}{}", options.vm_name,
                    status.error().message, newest_committed(ledger),
                    ends ? ": start the sidecar again when that is put right" : ""));
    return ends ? kExitFailed : capture::kWorkerTryAgain;
  }
  if (!flushed) say(flushed.error().message);
  return flushed ? kExitOk : kExitFailed;
}

}  // namespace vmshadow::app
