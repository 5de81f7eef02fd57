// How the VM was when its migration stopped it: QEMU puts that into the device state itself.
#pragma once

#include <optional>
#include <string>

#include <vmshadow/types.h>

namespace vmshadow::capture {

/// The run state ("running", "paused", …) in the section `globalstate` of a device state; nullopt
/// if there is none (machine types of QEMU 2.3 and older). A restored VM goes on in this state.
[[nodiscard]] std::optional<std::string> run_state_at_cut(ByteSpan device_state);

}  // namespace vmshadow::capture
