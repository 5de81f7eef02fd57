// The seam before capture's sink: something that can take consistent epochs of one running VM.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>

#include <vmshadow/page_sink.h>
#include <vmshadow/result.h>
#include <vmshadow/types.h>

namespace vmshadow {

/// What one epoch cost the guest. The phases follow one another:
///
///   asked ─request─► REPLY ─stop─► STOP ─cut─► VMSTATE_SEND ─ram─► ─device─► all read ─resume─►
///   RESUME
///         (it runs)                └────────────────── pause ──────────────────────┘
///
/// STOP and RESUME carry QEMU's stamps, the rest is seen at our end of the stream: a reader that
/// lags sees the end of the stream late, and `resume` is 0 where that was after RESUME.
struct EpochStats {
  Epoch epoch;
  std::uint64_t pages{};       ///< page records in the stream, zero pages included
  std::uint64_t zero_pages{};  ///< of those, pages that are all zero
  std::uint64_t stream_bytes{};
  std::uint64_t device_bytes{};
  std::uint64_t disk_pages{};  ///< of protected disks, zero pages included
  /// STOP to RESUME on the monitor; nullopt if an event is missing (the source says so in its log).
  std::optional<std::chrono::microseconds> pause;
  /// From our asking for an epoch to our REPLY: QEMU's REQUEST and the gate. The VM runs.
  std::chrono::microseconds request{};
  /// REPLY to STOP: QEMU stops the processors. (To VMSTATE_SEND if there was no STOP event.)
  std::chrono::microseconds stop{};
  /// STOP to our receipt of VMSTATE_SEND: QEMU drains and flushes the disks.
  std::chrono::microseconds cut{};
  /// Of `ram`, from VMSTATE_SEND on (or, where the monitor waits for QEMU's sends, at the end of
  /// `device`): until the mirrors of protected disks had brought all.
  std::chrono::microseconds disks{};
  /// VMSTATE_SEND to the end of the RAM section. (Of a full pass: all of it.)
  std::chrono::microseconds ram{};
  /// End of RAM to the last byte of device state.
  std::chrono::microseconds device{};
  /// The last byte to RESUME; 0 if that was not seen.
  std::chrono::microseconds resume{};
  /// Of a source that reads all RAM for each epoch: from our asking to the last byte. Its `request`
  /// is the part of that in which the VM runs, `ram` begins at STOP.
  std::optional<std::chrono::microseconds> pass{};
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
