// One VM's protection: monitor, source, shipper, and the loop that takes epochs at a cadence.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <string>

#include <vmshadow/result.h>

#include "app/epoch_ledger.h"
#include "app/sidecar_figures.h"
#include "app/stop_signal.h"
#include "base/thread_priority.h"
#include "capture/cadence.h"
#include "capture/capture_kind.h"
#include "capture/worker_guard.h"
#include "io/socket.h"

namespace vmshadow::app {

struct SidecarOptions {
  std::string vm_name;
  std::string qmp_path;
  io::TcpAddress store;
  std::chrono::milliseconds interval{200};
  /// Instead of a set interval: what the lag and the guest's pauses may be.
  std::optional<capture::CadenceOptions> cadence;
  /// nullopt: COLO, or full passes where it is absent or broken.
  std::optional<capture::CaptureKind> source;
  ThreadPriority encoder_priority = ThreadPriority::idle;
  /// Of the guard.
  std::chrono::milliseconds pause_deadline{300};
  std::string guard_qmp_path;  ///< a monitor for the guard alone; empty: there is none
  /// Stop, in order, after this many epochs beside the full pass; nullopt: until told.
  std::optional<std::uint64_t> epochs;
  /// End instead of protecting again when protection was lost.
  bool once = false;
  /// Protect RAM and devices alone of a VM that also has writable disks.
  bool ignore_disks = false;
  /// What a disk's guest may write between two epochs, in memory.
  std::size_t disk_buffer_bytes = std::size_t{256} << 20;
  /// Ship all RAM at the start, also where the store has most of it already.
  bool ship_all = false;
  ReportStyle report = ReportStyle::quiet;
};

/// Exit codes of vmshadow-sidecar.
inline constexpr int kExitOk = capture::kWorkerDone;
inline constexpr int kExitFailed = capture::kWorkerFailed;
inline constexpr int kExitUsage = 2;
inline constexpr int kExitVmGone = capture::kWorkerVmGone;

/// Protects the VM until `stop`, the number of epochs is reached, or an error. Whatever happens the
/// VM is released before it returns, or `flags` say that the guard must. Errors go to stderr, one
/// sentence each; what it does is added to `figures`, and told on `report`, which must never wait.
/// Returns one of the above, or capture::kWorkerTryAgain after what may pass.
[[nodiscard]] int run_sidecar(const SidecarOptions& options, const StopSignal& stop,
                              capture::GuardFlags& flags, SidecarFigures& figures,
                              std::FILE* report);

}  // namespace vmshadow::app
