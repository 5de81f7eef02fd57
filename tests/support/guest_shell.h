// Commands typed into a guest's shell on its console; of a guest that was booted as of one
// restored.
#pragma once

#include <string>

#include <vmshadow/result.h>

#include "io/socket.h"
#include "support/console.h"

namespace vmshadow::test {

/// Types `command` (one line) and returns what it printed, without the echo. The shell must be at
/// its prompt. Errc::invalid_argument with the output if its status is not 0.
[[nodiscard]] Result<std::string> run_in_shell(Console& console, const std::string& command,
                                               io::Deadline deadline);

}  // namespace vmshadow::test
