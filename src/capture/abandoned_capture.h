// A VM that a capture left behind: worker and guard were killed together. At the cut it stands
// still for ever; between two cuts it runs, but can neither be migrated nor protected.
#pragma once

#include <optional>
#include <string>

#include <vmshadow/result.h>

#include "qmp/session.h"

namespace vmshadow::capture {

/// Ends what a dead capture of ours left running in this QEMU, at once, and puts the migration
/// settings it left to QEMU's defaults. Only for one who knows that no capture of this VM lives
/// (VmClaim). Returns what was found and done, as a sentence; nullopt if nothing was (a COLO of
/// somebody else's is left alone: its settings are not ours). Errors as release_vm()'s.
[[nodiscard]] Result<std::optional<std::string>> release_abandoned(qmp::Session& session);

}  // namespace vmshadow::capture
