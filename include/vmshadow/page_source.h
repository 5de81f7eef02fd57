// The seam before capture's sink: something that can take consistent epochs of one running VM.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>

#include <vmshadow/page_sink.h>
#include <vmshadow/result.h>
#include <vmshadow/types.h>

namespace vmshadow {

/// What one epoch cost the guest, by QEMU's own event time stamps.
struct EpochStats {
  Epoch epoch;
  std::uint64_t pages{};       ///< page records in the stream, zero pages included
  std::uint64_t zero_pages{};  ///< of those, pages that are all zero
  std::uint64_t stream_bytes{};
  std::uint64_t device_bytes{};
  /// STOP to RESUME on the monitor; nullopt if an event is missing (the source says so in its log).
  std::optional<std::chrono::microseconds> pause;
  /// Our send of REPLY to our receipt of VMSTATE_SEND: QEMU stops the VM and drains its disks here.
  std::chrono::microseconds stop{};
  /// VMSTATE_SEND to the end of the RAM section.
  std::chrono::microseconds ram{};
  /// End of RAM to the last byte of device state.
  std::chrono::microseconds device{};
};

class PageSource {
 public:
  virtual ~PageSource() = default;

  /// Takes the first epoch, `first`: a full pass. Blocks until it is in the sink.
  [[nodiscard]] virtual Result<EpochStats> attach(PageSink& sink, Epoch first) = 0;
  /// Takes the next epoch. Errc::cancelled: the VM may not be stopped just now (suspended by its
  /// administrator, panicked, …), nothing happened, try again later; any other error: detach.
  [[nodiscard]] virtual Result<EpochStats> take_epoch() = 0;
  /// Leaves the VM running and as it was found. Safe at any time, also after an error.
  [[nodiscard]] virtual Status detach() = 0;
};

}  // namespace vmshadow
