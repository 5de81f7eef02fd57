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
//
// A guest may write less than a page. The rest of such a page is to be read from the disk itself,
// and whenever that is done between two cuts it is right: a sector that is still not known at the
// second cut was not written since the first. (QEMU writes to the disk before it writes to its
// mirror: what is read may be newer than what is here, and then the newer write is on its way and
// comes before the cut, for which QEMU drains the disks.) Only what was read before the first cut
// must not be used after it.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <unordered_set>
#include <vector>

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
  /// writes are drained.
  [[nodiscard]] Cut cut();
  /// Of what was written, the pages that are known as a whole: while a mirror's first copy goes on,
  /// and no cut is wanted yet.
  [[nodiscard]] WrittenPages take_complete();
  /// What a cut took and could not be used: part of the next one again. Holds the guest's writes up
  /// for what was written meanwhile only.
  void put_back(WrittenPages&& taken);
  /// Empty, for a mirror that begins anew.
  void restart();
  [[nodiscard]] bool overflowed() const { return overflowed_; }
  /// About the pages that wait for a cut, zeroes not counted.
  [[nodiscard]] std::size_t held_pages() const { return held_pages_; }

  /// Pages of which some sectors are not known.
  struct Unknown {
    std::uint64_t term{};  ///< what is read of them counts until the next cut ends it
    std::vector<PageNumber> pages;
    bool operator==(const Unknown&) const = default;
  };
  /// Waits until there are some that were not told before in this term, and tells at most `most` of
  /// them; none once wake() was called.
  [[nodiscard]] Unknown wait_for_unknown(std::size_t most);
  /// `content` of the whole page was read after it was told of. Of a term that has ended: ignored.
  void complete(std::uint64_t term, PageNumber page, ByteSpan content);
  /// Waits until all that is here is known. False if it is not so within `limit`.
  [[nodiscard]] bool wait_until_known(std::chrono::milliseconds limit);
  /// Ends wait_for_unknown() for good.
  void wake();

 private:
  /// For a change that may touch `pages` pages in part or with content.
  [[nodiscard]] Status make_sure_of_room(std::size_t pages);
  /// A range was written: its first and last page may be known in part.
  void note_ends(std::uint64_t offset, std::uint64_t bytes);
  void note_all_incomplete();
  void note_incomplete(PageNumber page);
  void begin_term();

  const std::uint64_t disk_bytes_;
  const std::size_t held_pages_max_;
  std::mutex mutex_;
  std::condition_variable changed_;  // something unknown came, or the last of it went
  // Under the mutex.
  WrittenPages written_;
  std::uint64_t term_ = 0;
  std::unordered_set<std::uint64_t> untold_;      // pages that may be incomplete
  std::unordered_set<std::uint64_t> incomplete_;  // those that are
  bool woken_ = false;

  std::atomic<bool> overflowed_{false};
  std::atomic<std::size_t> held_pages_{0};
};

}  // namespace vmshadow::capture
