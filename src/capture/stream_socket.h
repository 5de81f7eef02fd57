// Where QEMU's migration stream comes to: a socket of ours.
#pragma once

#include <chrono>
#include <functional>

#include <vmshadow/result.h>

#include "base/unique_fd.h"
#include "qmp/session.h"

namespace vmshadow::capture {

struct StreamSocketOptions {
  /// Asked of the kernel for the stream's socket, each way.
  int buffer_bytes{};
  /// For QEMU's connecting, where it has to.
  std::chrono::milliseconds connect{};
  /// Say where it is by a path, and why: worth once a monitor.
  bool say_path = true;
  /// Called when all is ready and only `migrate` is left; an error of it ends the opening.
  std::function<Status()> just_before{};
};

/// Tells QEMU to migrate to us; our end of the stream, non-blocking. `migrating` is set just
/// before: from then on, also if this fails, the migration must be undone (release_vm()).
[[nodiscard]] Result<UniqueFd> open_stream(qmp::Session& session,
                                           const StreamSocketOptions& options, bool& migrating);

}  // namespace vmshadow::capture
