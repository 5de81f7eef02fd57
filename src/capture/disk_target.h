// The far side of a disk's mirror: takes what QEMU copies, keeps it in memory until the next cut.
//
// Everything is acknowledged as soon as it is here: QEMU waits for its copies when it stops the VM,
// and must never wait for a journal. Flushes mean nothing here for the same reason: what is in the
// shadow is told by the epochs' commits.
//
// What may be held is bounded. Past that the target has failed for good: it drops what it
// holds and what comes, and still says that all is well, for a guest should not depend on how QEMU
// handles errors. The mirror is to be ended then, and the disk to be captured anew.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>

#include <vmshadow/block_device.h>
#include <vmshadow/machine.h>

#include "capture/written_pages.h"

namespace vmshadow::capture {

class DiskTarget final : public BlockDevice {
 public:
  /// `disk_bytes`: whole sectors. At most `held_pages_max` pages with content (or as many bytes of
  /// runs of zeroes) wait for a cut; what a cut took is not counted.
  DiskTarget(std::uint64_t disk_bytes, std::size_t held_pages_max);

  [[nodiscard]] std::uint64_t bytes() const override { return disk_bytes_; }
  [[nodiscard]] std::uint32_t block_bytes() const override { return kDiskSectorBytes; }
  [[nodiscard]] bool read_only() const override { return false; }
  /// Errc::unsupported: nothing is kept here to be read.
  [[nodiscard]] Status read(std::uint64_t offset, MutableByteSpan into) override;
  [[nodiscard]] Status write(std::uint64_t offset, ByteSpan from) override;
  [[nodiscard]] Status write_zeroes(std::uint64_t offset, std::uint64_t bytes,
                                    bool may_unmap) override;
  /// As zeroes: the only content that every reader of the shadow would agree on.
  [[nodiscard]] Status trim(std::uint64_t offset, std::uint64_t bytes) override;
  [[nodiscard]] Status flush() override { return {}; }

  /// All that was copied since the cut before. Takes no longer for more.
  [[nodiscard]] WrittenPages cut();

  enum class Failure {
    none,
    overflow,   ///< more was written than may be held
    part_page,  ///< something was written that is not whole pages
  };
  /// Until it is none, what a cut takes is not what was written.
  [[nodiscard]] Failure failure() const { return failure_; }
  /// About the pages that wait for a cut, zeroes not counted.
  [[nodiscard]] std::size_t held_pages() const { return held_pages_; }

 private:
  /// Whether a range is whole pages, but for the disk's end; if so, and while there is room,
  /// changes what was written.
  template <class Change>
  void change(std::uint64_t offset, std::uint64_t bytes, std::size_t held_more, const Change& how);
  void fail_for_good(Failure why);

  const std::uint64_t disk_bytes_;
  const std::size_t held_pages_max_;
  std::mutex mutex_;
  WrittenPages written_;  // under the mutex
  std::atomic<Failure> failure_{Failure::none};
  std::atomic<std::size_t> held_pages_{0};
};

}  // namespace vmshadow::capture
