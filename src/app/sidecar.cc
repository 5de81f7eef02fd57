#include "app/sidecar.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <spdlog/spdlog.h>

#include <utility>

#include "capture/colo_probe.h"
#include "capture/colo_source.h"
#include "capture/vm_events.h"
#include "qmp/session.h"
#include "ship/epoch_shipper.h"

namespace vmshadow::app {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kRoomPatience{100};
constexpr milliseconds kFlushPatience{15000};
constexpr milliseconds kFlushPatienceVmGone{5000};
constexpr milliseconds kRetryWhilePaused{200};

void say(const std::string& sentence) { fmt::print(stderr, "vmshadow-sidecar: {}\n", sentence); }

struct Protection {
  const SidecarOptions& options;
  const StopSignal& stop;
  capture::GuardFlags& flags;
  EpochLedger& ledger;
  ship::EpochShipper& shipper;
  capture::ColoSource& source;

  [[nodiscard]] Status run();
  /// Waits for the sink; false if told to stop meanwhile.
  [[nodiscard]] Result<bool> wait_for_room() const;
  void announce(const EpochStats& first) const;
};

void Protection::announce(const EpochStats& first) const {
  if (options.report == ReportStyle::json_lines) {
    const nlohmann::json line{{"event", "attached"},
                              {"vm", options.vm_name},
                              {"generation", shipper.generation().value},
                              {"epoch", first.epoch.value},
                              {"pages", first.pages},
                              {"source", "colo"}};
    fmt::print(options.report_to, "{}\n", line.dump());
    std::fflush(options.report_to);
  } else {
    spdlog::info("VM '{}' attached: generation {}, first pass {} pages in {} ms", options.vm_name,
                 shipper.generation().value, first.pages, first.ram.count() / 1000);
  }
}

Result<bool> Protection::wait_for_room() const {
  for (;;) {
    VMSHADOW_ASSIGN(const bool room, shipper.wait_for_room(kRoomPatience));
    if (room) return true;
    if (stop.wait(io::deadline_after({}))) return false;
  }
}

// Ends with success when told to, with an error when protection cannot go on.
Status Protection::run() {
  flags.migrating = true;
  VMSHADOW_ASSIGN(const EpochStats first, source.attach(shipper, shipper.first_epoch()));
  ledger.taken(first);
  announce(first);

  bool paused_said = false;
  auto next = io::Deadline::clock::now() + options.interval;
  for (std::uint64_t taken = 0; !options.epochs || taken < *options.epochs;) {
    if (stop.wait(next)) return {};
    VMSHADOW_ASSIGN(const bool room, wait_for_room());
    if (!room) return {};
    // From the time of asking, so that a slow epoch is not followed by a burst.
    next = std::max(next + options.interval, io::Deadline::clock::now());
    auto stats = source.take_epoch();
    if (!stats) {
      if (stats.error().code != Errc::cancelled) return fail(std::move(stats).error());
      if (!std::exchange(paused_said, true)) spdlog::warn("{}", stats.error().message);
      next = io::deadline_after(kRetryWhilePaused);
      continue;
    }
    paused_said = false;
    ledger.taken(*stats);
    ++taken;
  }
  return {};
}

}  // namespace

int run_sidecar(const SidecarOptions& options, const StopSignal& stop, capture::GuardFlags& flags) {
  capture::VmEvents events;
  qmp::SessionOptions session_options;
  session_options.on_event = [&events](const qmp::Event& event) { events.handle(event); };
  auto session = qmp::Session::connect(options.qmp_path, session_options);
  if (!session) {
    say(session.error().message);
    return kExitFailed;
  }
  // Before the store grants a generation for a VM that cannot be captured anyway.
  Status able = capture::probe_colo(**session);
  if (able && !options.ignore_disks) able = capture::refuse_unprotected_disks(**session);
  if (!able) {
    say(fmt::format("VM '{}' cannot be protected: {}", options.vm_name, able.error().message));
    return kExitFailed;
  }

  EpochLedger ledger(options.report, options.report_to);
  auto shipper = ship::EpochShipper::connect(
      options.store, options.vm_name, system_clock(),
      [&ledger](const ship::CommittedEpoch& epoch) { ledger.committed(epoch); });
  if (!shipper) {
    say(shipper.error().message);
    return kExitFailed;
  }

  capture::ColoSource source(**session, events, system_clock());
  Status status = Protection{options, stop, flags, ledger, **shipper, source}.run();
  // The VM first, then what is still on its way to the store.
  const Status released = source.detach();
  const bool vm_gone = (*session)->closed().has_value();
  if (released || vm_gone) flags.migrating = false;
  const Status flushed = (*shipper)->flush(vm_gone ? kFlushPatienceVmGone : kFlushPatience);
  ledger.print_summary((*shipper)->lag());

  if (vm_gone) {
    const auto last = ledger.summary().last;
    say(fmt::format("the monitor of VM '{}' is gone ({}); {}", options.vm_name,
                    (*session)->closed()->message,
                    last ? fmt::format("the newest committed epoch is {}", last->value)
                         : std::string("no epoch was committed")));
    return kExitVmGone;
  }
  if (!status) {
    const auto last = ledger.summary().last;
    say(fmt::format(
        "VM '{}' is no longer protected: {}; {}{}: start the sidecar again when that is "
        "put right",
        options.vm_name, status.error().message, released ? "the VM runs on, " : "",
        last ? fmt::format("the newest committed epoch is {}", last->value)
             : std::string("no epoch was committed")));
  }
  if (!released)
    say(fmt::format("VM '{}' was not released: {}", options.vm_name, released.error().message));
  if (status && !flushed) say(flushed.error().message);
  return status && released && flushed ? kExitOk : kExitFailed;
}

}  // namespace vmshadow::app
