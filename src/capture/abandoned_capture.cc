#include "capture/abandoned_capture.h"

#include <fmt/format.h>

#include "capture/disk_mirror.h"
#include "capture/migration_settings.h"
#include "capture/release_vm.h"
#include "qmp/commands.h"

namespace vmshadow::capture {

namespace {

Result<std::optional<std::string>> release_migration(qmp::Session& session) {
  // What a full pass needs on, COLO needs too, or leaves alone; x-colo is switched off for both.
  VMSHADOW_ASSIGN(const auto settings, MigrationSettings::read(session, CaptureKind::full_pass));
  if (!settings.left_by_capture()) return std::nullopt;

  VMSHADOW_ASSIGN(const qmp::MigrationInfo migration, qmp::query_migrate(session));
  VMSHADOW_ASSIGN(const qmp::RunState before, qmp::query_status(session));
  // A full pass's settings are in force only while it lasts: so it is the migration that has
  // completed under them, and nobody has resumed its VM.
  const bool resume_owed = settings.left_by_full_pass() && migration.status == "completed" &&
                           before.text == "postmigrate";
  VMSHADOW_TRY(release_vm(session, resume_owed));
  VMSHADOW_TRY(settings.restore(session));
  VMSHADOW_ASSIGN(const qmp::RunState after, qmp::query_status(session));
  const std::string state = after.running ? "it runs" : fmt::format("its status is {}", after.text);
  if (!migration.active() && !resume_owed) {
    return fmt::format(
        "a vmshadow-sidecar that was killed together with its guard had left its migration "
        "settings: they were put back; {}",
        state);
  }
  return fmt::format(
      "the VM had been left {} (migration status {}) by a vmshadow-sidecar that was killed "
      "together with its guard: it was released, {}",
      before.running ? (migration.status == "colo" ? "running in COLO" : "running")
                     : fmt::format("standing still, status {}", before.text),
      migration.status, state);
}

}  // namespace

Result<std::optional<std::string>> release_abandoned(qmp::Session& session) {
  free_stuck_monitor(session);
  VMSHADOW_ASSIGN(const auto released, release_migration(session));
  VMSHADOW_ASSIGN(const bool mirrors, end_mirrors(session));
  if (released || !mirrors) return released;
  return "a vmshadow-sidecar that was killed together with its guard had left mirrors of this VM's "
         "disks: they were ended";
}

}  // namespace vmshadow::capture
