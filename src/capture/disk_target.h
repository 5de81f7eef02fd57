// The far side of a disk's mirror: takes what QEMU writes, keeps it in memory until the next cut.
//
// A write is acknowledged as soon as it is here: the guest waits for each of its writes to be
// mirrored (copy-mode=write-blocking), and never for a journal. Flushes mean nothing here for the
// same reason: what the guest flushed is durable on its own disk, and what is in the shadow is told
// by the epochs' commits.
//
// What may be held is bounded. Past that the target refuses, and goes on refusing until restart():
// QEMU then ends the mirror (on-target-error=report), the guest's write succeeds on its own disk,
// and the disk has to be synchronised again.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>

#include <vmshadow/block_device.h>

#include "capture/written_pages.h"

namespace vmshadow::capture {

class DiskTarget final : public BlockDevice {
 public:
  /// `disk_bytes`: a multiple of WrittenPages::kSectorBytes. At most `held_pages_max` pages with
  /// content (or as many bytes of runs of zeroes) wait for a cut; what a cut took is not counted.
  DiskTarget(std::uint64_t disk_bytes, std::size_t held_pages_max);

  [[nodiscard]] std::uint64_t bytes() const override { return disk_bytes_; }
  [[nodiscard]] std::uint32_t block_bytes() const override { return WrittenPages::kSectorBytes; }
  [[nodiscard]] bool read_only() const override { return false; }
  /// Errc::unsupported: nothing is kept here to be read.
  [[nodiscard]] Status read(std::uint64_t offset, MutableByteSpan into) override;
  /// Errc::no_space past the bound.
  [[nodiscard]] Status write(std::uint64_t offset, ByteSpan from) override;
  [[nodiscard]] Status write_zeroes(std::uint64_t offset, std::uint64_t bytes,
                                    bool may_unmap) override;
  /// As zeroes: the only content that every reader of the shadow would agree on.
  [[nodiscard]] Status trim(std::uint64_t offset, std::uint64_t bytes) override;
  [[nodiscard]] Status flush() override { return {}; }

  struct Cut {
    WrittenPages written;
    bool whole = false;  ///< false: a write was refused, and this is not all that the guest wrote
  };
  /// All that was written since the cut before. To be called while the guest stands still and its
  /// writes are drained; what the pages do not know is to be read then too.
  [[nodiscard]] Cut cut();
  /// What a cut took and could not be used: part of the next one again. Holds the guest's writes up
  /// for what was written meanwhile only.
  void put_back(WrittenPages&& taken);
  /// Empty, for a mirror that begins anew.
  void restart();
  [[nodiscard]] bool overflowed() const { return overflowed_; }

 private:
  /// For a change that may touch `pages` pages in part or with content.
  [[nodiscard]] Status make_sure_of_room(std::size_t pages);

  const std::uint64_t disk_bytes_;
  const std::size_t held_pages_max_;
  std::mutex mutex_;
  WrittenPages written_;  // under the mutex
  std::atomic<bool> overflowed_{false};
};

}  // namespace vmshadow::capture
