// Gets a VM out of a migration of ours, whatever became of the one who started it.
#pragma once

#include <vmshadow/result.h>

#include "qmp/session.h"

namespace vmshadow::capture {

/// Ends COLO (or cancels the first pass), waits until QEMU's migration is at rest (a later
/// `migrate` would wedge it before that), and sees the VM running again; one that was suspended by
/// its administrator is suspended again (it runs for the moment that this takes). The stream's
/// socket must be closed first: a QEMU stuck in sending cannot listen. Only to be called when the
/// migration is known to be ours. Errc::timed_out says in which state the VM was left and what to
/// do.
[[nodiscard]] Status release_vm(qmp::Session& session);

}  // namespace vmshadow::capture
