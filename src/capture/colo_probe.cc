#include "capture/colo_probe.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "capture/colo_versions.h"
#include "qmp/commands.h"

namespace vmshadow::capture {

Status check_colo_version(const qmp::QemuVersion& version) {
  const char* refusal = colo_version(version).refusal;
  if (refusal == nullptr) return {};
  return fail(Errc::unsupported, fmt::format("QEMU {} {}", version.text(), refusal));
}

Status check_colo(qmp::Session& session) {
  VMSHADOW_TRY(check_colo_version(session.version()));

  VMSHADOW_ASSIGN(const auto commands, qmp::query_commands(session));
  if (std::find(commands.begin(), commands.end(), "x-colo-lost-heartbeat") == commands.end()) {
    return fail(Errc::unsupported,
                fmt::format("QEMU {} was built without COLO (no x-colo-lost-heartbeat): a build "
                            "with replication support is needed",
                            session.version().text()));
  }
  VMSHADOW_ASSIGN(const auto capabilities, qmp::query_migrate_capabilities(session));
  if (!capabilities.contains("x-colo")) {
    return fail(Errc::unsupported, fmt::format("QEMU {} does not offer the migration capability "
                                               "x-colo",
                                               session.version().text()));
  }
  return {};
}

Status check_full_pass(qmp::Session& session) {
  VMSHADOW_ASSIGN(const auto capabilities, qmp::query_migrate_capabilities(session));
  for (const char* needed : {"return-path", "events"}) {
    if (capabilities.contains(needed)) continue;
    return fail(Errc::unsupported, fmt::format("QEMU {} does not offer the migration capability {}",
                                               session.version().text(), needed));
  }
  VMSHADOW_ASSIGN(const bool silent, qmp::suppresses_description(session));
  if (!silent) return {};
  return fail(Errc::unsupported,
              "this machine sends no description of its state (suppress-vmdesc, machine types of "
              "QEMU 2.2 and older), which tells where a full pass ends");
}

Status probe_vm(qmp::Session& session) {
  VMSHADOW_ASSIGN(const auto obstacles, qmp::find_obstacles(session));
  if (!obstacles.empty()) {
    std::string text;
    for (const auto& obstacle : obstacles) {
      text +=
          fmt::format("{}'{}' ({})", text.empty() ? "" : ", ", obstacle.device, obstacle.reason);
    }
    return fail(Errc::unsupported,
                fmt::format("this VM has devices whose state cannot be captured: {}; remove them "
                            "to protect it",
                            text));
  }

  VMSHADOW_ASSIGN(const auto migration, qmp::query_migrate(session));
  if (migration.status == "colo") {
    return fail(Errc::in_use,
                "it is in COLO already: something else protects it, stop that first; if nothing "
                "does (a vmshadow-sidecar was killed together with its guard, and lived where it "
                "is not seen from here), vmshadow-sidecar --release ends it");
  }
  if (migration.active()) {
    return fail(Errc::in_use, fmt::format("a migration of this VM is under way (status {}); try "
                                          "again when it is over",
                                          migration.status));
  }
  VMSHADOW_ASSIGN(const auto run_state, qmp::query_status(session));
  if (!run_state.running) {
    return fail(
        Errc::invalid_argument,
        fmt::format("the VM is not running (status {}); start or resume it first", run_state.text));
  }
  return {};
}

}  // namespace vmshadow::capture
