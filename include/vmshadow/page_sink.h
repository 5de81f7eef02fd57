// The seam after capture: where a page source delivers an epoch's raw pages.
//
//   begin_epoch ─► add* ─► end_epoch          (committed by the far side later)
//        └───────────┴───► abandon_epoch      (nothing of the epoch will ever count)
//
// All calls come from one capture thread. None but wait_for_room() may block: the guest may be
// stopped while they run.
#pragma once

#include <chrono>
#include <cstddef>
#include <memory>
#include <vector>

#include <vmshadow/clock.h>
#include <vmshadow/machine.h>
#include <vmshadow/result.h>
#include <vmshadow/types.h>

namespace vmshadow {

/// One page as captured. `data` points at kPageBytes bytes (any alignment), or is null for a page
/// that is all zero.
struct PageRef {
  BlockIndex block;
  PageNumber page;
  const std::byte* data{};
};

/// Pages of a disk that are all zero: a guest discards gigabytes at once.
struct ZeroDiskPages {
  BlockIndex block;
  PageNumber first;
  std::uint64_t count{};
};

/// Pages together with the memory they point into. Move-only; freeing it frees the pages. A RAM
/// page may occur more than once in a full pass: the later occurrence is the newer one. A disk's
/// page occurs at most once in a batch, in one of the two lists; in a later batch it is newer.
struct PageBatch {
  std::vector<PageRef> pages;
  std::vector<ZeroDiskPages> zero_disk_pages;
  /// Keeps the bytes behind `pages` alive. May be shared by consecutive batches.
  std::vector<std::shared_ptr<const std::byte[]>> storage;
  /// Bytes of memory this batch accounts for (for bounding what is queued).
  std::size_t memory_bytes{};
};

struct EpochBegin {
  Epoch epoch;
  /// A full pass: every page of every RAM block and disk follows at least once, and no earlier
  /// epoch is needed to restore this one. The first epoch of a session is one; a sink that knows
  /// what the far side has may ship less of it.
  bool full{};
  /// Set when `full`; outlives the call only if copied.
  const MachineDescription* machine{};
  /// The guest runs while the pages come, as in a full pass, and a page may come more than once:
  /// the sink shall work while they do, for they may be all of the guest's RAM.
  bool guest_runs{};
};

struct EpochEnd {
  Epoch epoch;
  /// When the VM stood still for this cut.
  WallTime cut_wall;
  MonotonicTime cut_monotonic;
  /// Device FULL sections followed by the 0x00 that ends a stream. Never empty.
  std::vector<std::byte> device_state;
};

class PageSink {
 public:
  virtual ~PageSink() = default;

  virtual void begin_epoch(const EpochBegin& begin) = 0;
  /// Takes pages of the open epoch. Never blocks, never refuses: what cannot be processed is held.
  virtual void add(PageBatch batch) = 0;
  /// The cut is complete. Commit happens behind the sink; it is reported elsewhere.
  virtual void end_epoch(EpochEnd end) = 0;
  /// Drops the open epoch, if any.
  virtual void abandon_epoch() = 0;

  /// Waits until the sink has worked off enough of what it holds to take more, or `limit` passed.
  /// Only called while the guest runs. Returns whether there is room; an Error if the sink failed
  /// for good (the far side is gone) and capture should detach.
  [[nodiscard]] virtual Result<bool> wait_for_room(std::chrono::nanoseconds limit) = 0;
};

}  // namespace vmshadow
