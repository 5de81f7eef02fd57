// Records how a running QEMU was started, so that another one like it can be.
#pragma once

#include <string>
#include <vector>

#include <vmshadow/result.h>

#include "qmp/commands.h"

namespace vmshadow::capture {

/// The JSON text of MachineDescription::json (keys: docs/store-format.md). The command line comes
/// from /proc of the process behind the monitor; where that cannot be read (another container, a
/// monitor through a proxy) "argv" is empty and a restore needs a QEMU that already waits.
[[nodiscard]] Result<std::string> record_machine(qmp::Session& session,
                                                 const std::vector<qmp::WritableDisk>& disks = {});

}  // namespace vmshadow::capture
