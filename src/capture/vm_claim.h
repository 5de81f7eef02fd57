// At most one sidecar of this host captures a VM; so what is found in COLO without one was left
// behind by a capture that died.
#pragma once

#include <optional>
#include <utility>

#include <vmshadow/result.h>

#include "base/unique_fd.h"
#include "qmp/session.h"

namespace vmshadow::capture {

/// A name of QEMU's process among the kernel's abstract sockets: taken in one step, seen by every
/// process of this network namespace, and free again as soon as its holder ends, however it ends.
class VmClaim {
 public:
  /// Errc::in_use names the process that holds it. nullopt where the process behind the monitor is
  /// not seen (find_qemu_process()): nobody can know then whether another capture lives.
  [[nodiscard]] static Result<std::optional<VmClaim>> take(const qmp::Session& session);

 private:
  explicit VmClaim(UniqueFd fd) : fd_(std::move(fd)) {}
  UniqueFd fd_;
};

}  // namespace vmshadow::capture
