#include "app/release_command.h"

#include <fmt/format.h>

#include <vmshadow/result.h>

#include "app/sidecar.h"
#include "base/say.h"
#include "capture/abandoned_capture.h"
#include "capture/vm_claim.h"
#include "qmp/commands.h"

namespace vmshadow::app {
namespace {

struct Outcome {
  std::string sentence;
  bool running{};
};

Result<Outcome> release(qmp::Session& session) {
  // Of a capture that lives nothing is taken away: its own end releases the VM.
  VMSHADOW_ASSIGN(const auto claim, capture::VmClaim::take(session));
  VMSHADOW_ASSIGN(const auto released, capture::release_abandoned(session));
  VMSHADOW_ASSIGN(const qmp::RunState run_state, qmp::query_status(session));
  if (released) return Outcome{*released, run_state.running};
  VMSHADOW_ASSIGN(const qmp::MigrationInfo migration, qmp::query_migrate(session));
  const std::string found =
      fmt::format("status {}, migration status {}", run_state.text, migration.status);
  return Outcome{
      fmt::format("nothing of a vmshadow-sidecar is left in this QEMU ({}): nothing was done{}",
                  found, run_state.running ? "" : "; `cont` resumes a VM that is paused"),
      run_state.running};
}

}  // namespace

int run_release(const std::string& qmp_path) {
  const auto session = qmp::Session::connect(qmp_path);
  if (!session) {
    vmshadow::say("vmshadow-sidecar", session.error().message);
    const Errc code = session.error().code;
    return code == Errc::closed || code == Errc::not_found ? kExitVmGone : kExitFailed;
  }
  const auto outcome = release(**session);
  if (!outcome) {
    vmshadow::say("vmshadow-sidecar", "the VM was not released: " + outcome.error().message);
    return kExitFailed;
  }
  std::puts(outcome->sentence.c_str());
  return outcome->running ? kExitOk : kExitFailed;
}

}  // namespace vmshadow::app
