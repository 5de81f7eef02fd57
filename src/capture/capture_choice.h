// Which way to take epochs from this QEMU, and why.
#pragma once

#include <optional>
#include <string>

#include <vmshadow/result.h>

#include "capture/capture_kind.h"
#include "qmp/session.h"

namespace vmshadow::capture {

struct CaptureChoice {
  CaptureKind kind{};
  /// Why it is full passes, in one sentence without its end; empty for COLO.
  std::string why;
};

/// What `wanted` says, if this QEMU can; without it COLO, or full passes where COLO is absent or
/// broken. Errc::unsupported with the reason if it cannot. Touches nothing.
[[nodiscard]] Result<CaptureChoice> choose_capture(qmp::Session& session,
                                                   std::optional<CaptureKind> wanted);

/// Whether the VM has disks that it writes to. Errc::unsupported if it has, and epochs taken so
/// cannot hold them: RAM restored beside a disk of another moment is a damaged file system.
[[nodiscard]] Result<bool> has_disks_to_protect(qmp::Session& session, const CaptureChoice& choice);

}  // namespace vmshadow::capture
