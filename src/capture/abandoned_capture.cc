#include "capture/abandoned_capture.h"

#include <fmt/format.h>

#include "capture/migration_settings.h"
#include "capture/release_vm.h"
#include "qmp/commands.h"

namespace vmshadow::capture {

Result<std::optional<std::string>> release_abandoned(qmp::Session& session) {
  free_stuck_monitor(session);
  VMSHADOW_ASSIGN(const auto capabilities, qmp::query_migrate_capabilities(session));
  if (!capabilities.contains("x-colo")) return std::nullopt;
  VMSHADOW_ASSIGN(const auto settings, MigrationSettings::read(session));
  if (!settings.left_by_capture()) return std::nullopt;

  VMSHADOW_ASSIGN(const qmp::MigrationInfo migration, qmp::query_migrate(session));
  VMSHADOW_ASSIGN(const qmp::RunState before, qmp::query_status(session));
  VMSHADOW_TRY(release_vm(session));
  VMSHADOW_TRY(settings.restore(session));
  VMSHADOW_ASSIGN(const qmp::RunState after, qmp::query_status(session));
  const std::string state = after.running ? "it runs" : fmt::format("its status is {}", after.text);
  if (!migration.active()) {
    return fmt::format(
        "a vmshadow-sidecar that was killed together with its guard had left its migration "
        "settings: they were put back; {}",
        state);
  }
  return fmt::format(
      "the VM had been left {} (migration status {}) by a vmshadow-sidecar that was killed "
      "together with its guard: it was released, {}",
      before.running ? "running in COLO" : fmt::format("standing still, status {}", before.text),
      migration.status, state);
}

}  // namespace vmshadow::capture
