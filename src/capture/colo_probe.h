// Can this QEMU, now, be captured, and how? Asked before anything is touched.
#pragma once

#include <vmshadow/result.h>

#include "qmp/session.h"

namespace vmshadow::capture {

/// Errc::unsupported with the reason and the remedy if this QEMU's COLO is absent or broken.
/// Separate from check_colo() because it needs no monitor.
[[nodiscard]] Status check_colo_version(const qmp::QemuVersion& version);

/// That, and what the monitor tells. Errors as above.
[[nodiscard]] Status check_colo(qmp::Session& session);
/// Errc::unsupported with the reason if this QEMU or machine cannot be captured by full passes.
[[nodiscard]] Status check_full_pass(qmp::Session& session);

/// Refuses, by name: a device that a RAM and device-state stream does not capture, a VM that is not
/// running, a migration of somebody else's (Errc::in_use). Touches nothing.
[[nodiscard]] Status probe_vm(qmp::Session& session);

}  // namespace vmshadow::capture
