// The process behind a monitor, if it is QEMU itself.
#pragma once

#include <optional>
#include <string>

#include "qmp/session.h"

namespace vmshadow::capture {

struct QemuProcess {
  int pid{};
  std::string executable;
};

/// nullopt where somebody else opened the monitor's socket (a proxy, a management daemon) or the
/// process cannot be seen (another container).
[[nodiscard]] std::optional<QemuProcess> find_qemu_process(const qmp::Session& session);

}  // namespace vmshadow::capture
