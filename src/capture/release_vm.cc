#include "capture/release_vm.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <chrono>
#include <thread>

#include "io/socket.h"
#include "qmp/commands.h"

namespace vmshadow::capture {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kPatience{5000};
constexpr milliseconds kPollInterval{2};
constexpr milliseconds kFailsByItself{500};
constexpr milliseconds kRestartPatience{1000};
constexpr milliseconds kStuckAfter{200};

Status end_migration(qmp::Session& session, io::Deadline deadline) {
  // A first pass whose socket is closed fails by itself; cancelling could meet its step into COLO.
  const auto cancel_at = io::deadline_after(kFailsByItself);
  bool cancelled = false;
  for (;;) {
    VMSHADOW_ASSIGN(const qmp::MigrationInfo info, qmp::query_migrate(session));
    if (!info.active()) return {};
    // Either command may find that QEMU has just moved on by itself: the status decides. Never
    // migrate_cancel in COLO: newer QEMUs do not survive it.
    Status told;
    if (info.status == "colo") {
      told = qmp::colo_lost_heartbeat(session);
    } else if (!cancelled && io::Deadline::clock::now() >= cancel_at) {
      told = qmp::migrate_cancel(session);
      cancelled = true;
    }
    if (!told) spdlog::debug("ending the migration: {}", told.error().message);
    if (io::Deadline::clock::now() >= deadline) {
      return fail(Errc::timed_out,
                  fmt::format("QEMU's migration does not end (status {})", info.status));
    }
    std::this_thread::sleep_for(kPollInterval);
  }
}

Status see_it_run(qmp::Session& session, io::Deadline deadline) {
  for (;;) {
    VMSHADOW_ASSIGN(const qmp::RunState run_state, qmp::query_status(session));
    // These states are a migration's; any other that is not running (paused by its administrator,
    // shut down, panicked) is not our affair.
    const bool ours = run_state.text == "colo" || run_state.text == "finish-migrate" ||
                      run_state.text == "postmigrate";
    if (run_state.running || !ours) return {};
    if (io::Deadline::clock::now() >= deadline) {
      return fail(Errc::timed_out, fmt::format("the VM is still paused (status {}): resume it "
                                               "with cont",
                                               run_state.text));
    }
    if (run_state.text == "postmigrate") VMSHADOW_TRY(qmp::cont(session));
    std::this_thread::sleep_for(kPollInterval);
  }
}

// The migration is at rest a moment before QEMU starts the VM.
Status suspend_again(qmp::Session& session) {
  const auto deadline = io::deadline_after(kRestartPatience);
  while (io::Deadline::clock::now() < deadline) {
    VMSHADOW_ASSIGN(const qmp::RunState run_state, qmp::query_status(session));
    if (run_state.running) return qmp::stop(session);
    std::this_thread::sleep_for(kPollInterval);
  }
  return {};  // it was left alone
}

}  // namespace

Result<bool> release_vm(qmp::Session& session, bool resume_owed) {
  const auto deadline = io::deadline_after(kPatience);
  // QEMU starts the VM as it leaves COLO, also one that its administrator suspended meanwhile.
  VMSHADOW_ASSIGN(const qmp::RunState before, qmp::query_status(session));
  VMSHADOW_ASSIGN(const qmp::MigrationInfo migration, qmp::query_migrate(session));
  // At rest already: somebody else ended it, and may have moved the VM away. Touch nothing.
  if (!migration.active()) {
    if (!resume_owed || before.running) return false;
    VMSHADOW_TRY(see_it_run(session, deadline));
    return true;
  }
  // From these there is no way back to running, and QEMU aborts on trying.
  if (migration.status == "colo" &&
      (before.text == "internal-error" || before.text == "shutdown")) {
    return fail(
        Errc::unsupported,
        fmt::format("the VM is in state {}, in which QEMU does not survive the end of COLO: "
                    "reset or quit it through its monitor",
                    before.text));
  }
  VMSHADOW_TRY(end_migration(session, deadline));
  if (before.text != "paused" && before.text != "guest-panicked") {
    VMSHADOW_TRY(see_it_run(session, deadline));
    return true;
  }
  // A migration that ends before it has stopped a VM starts none, but COLO does.
  VMSHADOW_ASSIGN(const auto capabilities, qmp::query_migrate_capabilities(session));
  const auto colo = capabilities.find("x-colo");
  if (colo != capabilities.end() && colo->second) VMSHADOW_TRY(suspend_again(session));
  return true;
}

void free_stuck_monitor(qmp::Session& session) {
  if (!session.has_oob()) return;
  const auto answered = qmp::query_status(session, kStuckAfter);
  if (answered || answered.error().code != Errc::timed_out) return;
  if (auto cut = qmp::yank_migration(session); !cut) {
    spdlog::debug("cutting the migration's connection: {}", cut.error().message);
  }
}

}  // namespace vmshadow::capture
