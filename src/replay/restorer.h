// Puts one epoch into a QEMU and waits until that runs.
//
//   launch ──► connect ──► send ──► load ──► running
//   start QEMU,  hand over   the whole   QEMU loads the
//   its monitor  the stream  stream      devices' state
//   answers      socket
//
// A QEMU we started is killed again if anything fails; one of somebody else's is left alone.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <variant>

#include <vmshadow/clock.h>
#include <vmshadow/result.h>
#include <vmshadow/shadow_reader.h>

#include "replay/qemu_command.h"
#include "replay/qemu_launcher.h"
#include "replay/stream_writer.h"

namespace vmshadow::replay {

/// Start a QEMU; its monitor will be at `qmp_path`, its output in `log_path`.
struct LaunchTarget {
  QemuCommand command;
  std::string qmp_path;
  std::string log_path;
};
/// A QEMU started with `-incoming defer`, by its monitor.
struct MonitorTarget {
  std::string qmp_path;
};
/// A QEMU started with `-incoming ADDRESS`: "unix:PATH" or "tcp:HOST:PORT". Without a monitor
/// nothing but the end of its reading can be seen.
struct IncomingTarget {
  std::string address;
};
using RestoreTarget = std::variant<LaunchTarget, MonitorTarget, IncomingTarget>;

struct RestoreOptions {
  /// For a started QEMU's monitor to answer.
  std::chrono::milliseconds launch_timeout{30'000};
  /// Without QEMU taking a byte; and, after the last one, without it running.
  std::chrono::milliseconds stall_timeout{60'000};
  StreamProgress on_progress;
};

struct RestorePhases {
  std::chrono::microseconds launch{};
  std::chrono::microseconds connect{};
  std::chrono::microseconds send{};
  std::chrono::microseconds load{};
};

struct RestoreReport {
  RestorePhases phases;
  StreamStats stream;
  /// The guest's run state after loading: "running", or "paused" if that is how it was captured or
  /// QEMU was started with -S. Empty where there is no monitor to ask.
  std::string run_state;
  /// The QEMU we started.
  std::optional<pid_t> pid;
};

/// Errors: what the target or the image says; for a QEMU we started with the last words of its log.
/// Errc::invalid_argument names both values when its machine type or RAM size is not the recorded.
[[nodiscard]] Result<RestoreReport> restore(const EpochImage& image, const RestoreTarget& target,
                                            const RestoreOptions& options, const Clock& clock);

}  // namespace vmshadow::replay
