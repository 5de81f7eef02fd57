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

}  // namespace vmshadow::capture
