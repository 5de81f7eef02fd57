// vmshadow-sidecar --release: frees a VM that a sidecar left behind, and does nothing else.
#pragma once

#include <string>

namespace vmshadow::app {

/// Says on stdout what was found and done, or on stderr why not. kExitOk if the VM runs in the end,
/// kExitVmGone if there is no QEMU behind `qmp_path`, else kExitFailed.
[[nodiscard]] int run_release(const std::string& qmp_path);

}  // namespace vmshadow::app
