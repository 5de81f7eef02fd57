// Gets a VM out of a migration of ours, whatever became of the one who started it.
#pragma once

#include <vmshadow/result.h>

#include "qmp/session.h"

namespace vmshadow::capture {

/// Ends COLO (or cancels the first pass), waits until QEMU's migration is at rest (a later
/// `migrate` would wedge it before that), and sees the VM running again; one that was suspended by
/// its administrator, or has panicked, is stopped again (QEMU runs it for the moment that this
/// takes). A migration already at rest is left alone. The stream's socket must be closed first: a
/// QEMU stuck in sending cannot listen. Only to be called when the migration is known to be ours.
/// Errc::timed_out says in which state the VM was left and what to do; Errc::unsupported: it is in
/// a state in which QEMU would abort on leaving COLO, so nothing was done.
/// With `resume_owed`, a VM that such a migration has left in postmigrate is resumed: never without
/// knowing that, for else it may have been moved away and run elsewhere.
/// False: there was nothing to end or to resume any more.
[[nodiscard]] Result<bool> release_vm(qmp::Session& session, bool resume_owed = false);

/// For one who finds QEMU in the hands of a capture that may be dead: if the monitor answers
/// nothing because QEMU is stuck in sending to that capture, cuts the migration's connection (where
/// the session has oob), so that release_vm() is heard.
void free_stuck_monitor(qmp::Session& session);

}  // namespace vmshadow::capture
