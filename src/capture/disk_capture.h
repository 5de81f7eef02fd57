// A VM's writable disks, cut at the instant at which its RAM is cut.
//
//   guest ─► QEMU ─► disk
//                      └─ mirror: all of it, then what was written ─► DiskTarget ─ cut() ─► epoch
//
//   begin() ─► copy() … copy() true ─► (follow() ─► cut() ─► take_cut()) …
//
// The mirrors copy in the background, once a cut is near (until then what is written gathers in
// QEMU), whole pages, and no guest waits for them: not while they are
// slow, and not if this process dies. So at a cut they are a little behind. QEMU drains the disks
// when it stops the VM, and from then on nothing is written: cut() waits until the mirrors have
// brought the rest, which is short if follow() was called just before. What the targets hold then
// is what the guest wrote before the cut, all of it and nothing else.
//
// Whoever dies while this is under way leaves QEMU with mirrors whose connections are closed: they
// end by themselves. end_mirrors() takes out what is left.
#pragma once

#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include <vmshadow/page_sink.h>
#include <vmshadow/result.h>

#include "capture/written_pages.h"
#include "qmp/commands.h"
#include "qmp/session.h"

namespace vmshadow::capture {

struct DiskCaptureOptions {
  /// Of each disk, in memory. Near it a mirror is slowed down or halted; past it, which takes a
  /// QEMU that does not listen, the disks have to be captured anew.
  std::size_t held_bytes_max = std::size_t{256} << 20;
  /// A socket that takes our connections' descriptors, for a guard that frees QEMU from them when
  /// this process does not die as it should. -1: there is none.
  int to_guard = -1;
  /// Called about once a second during the first copy, with bytes.
  std::function<void(std::uint64_t done, std::uint64_t total)> on_copy;
};

class DiskCapture {
 public:
  /// Begins to mirror all of the VM's writable disks; nothing of a dead one may be left in QEMU
  /// (end_mirrors()). `session` outlives it. Errc::unsupported: a disk that cannot be mirrored.
  /// After an error nothing is left in QEMU.
  [[nodiscard]] static Result<std::unique_ptr<DiskCapture>> begin(qmp::Session& session,
                                                                  DiskCaptureOptions options = {});
  /// stop(), and tells the log what went wrong.
  ~DiskCapture();
  DiskCapture(const DiskCapture&) = delete;
  DiskCapture& operator=(const DiskCapture&) = delete;

  /// In the order in which the machine record lists them.
  [[nodiscard]] std::vector<qmp::WritableDisk> disks() const;

  // Any error of the following: a mirror has ended or was too slow; the disks are to be captured
  // anew.

  /// Hands over to `sink`, in whose open epoch the disks' blocks begin at `first`, what has been
  /// copied, as far as it has room; to be called every few milliseconds while the guest runs. True
  /// once every disk has been copied: from then on there can be cuts.
  [[nodiscard]] Result<bool> copy(PageSink& sink, BlockIndex first);
  /// That alone, without a word to QEMU's monitor: for one who must not wait for it. Meanwhile a
  /// thread keeps what is held in bounds, from steer_beside() until steer_no_more(), which waits
  /// for its last answer.
  [[nodiscard]] Status take_copied(PageSink& sink, BlockIndex first);
  void steer_beside();
  void steer_no_more();
  /// While the guest runs, between two cuts: whether all is well.
  [[nodiscard]] Status check();
  /// While the guest runs, before a cut: has the mirrors bring what was written, for at most
  /// `limit`. False if there is more of it than can be held, or still more than `behind_most`
  /// bytes, for which the stopped VM would have to wait: then it is handed over first, with copy().
  [[nodiscard]] Result<bool> follow(std::chrono::milliseconds limit, std::uint64_t behind_most);
  /// The VM stands still: waits until the mirrors have all. Errc::timed_out past `limit`.
  [[nodiscard]] Status cut(std::chrono::milliseconds limit);

  class Taken {
   public:
    /// With those that copy() handed over since the cut before.
    [[nodiscard]] std::uint64_t pages() const { return pages_; }
    /// Into its open epoch, whose disks begin at `first`.
    void give_to(PageSink& sink, BlockIndex first) &&;

   private:
    friend class DiskCapture;
    std::vector<std::shared_ptr<const WrittenPages>> by_disk_;
    std::uint64_t pages_ = 0;
  };
  /// What the last cut took. The VM may run again.
  [[nodiscard]] Result<Taken> take_cut();

  /// Leaves QEMU as it was. The guest runs on all the while.
  [[nodiscard]] Status stop();

 private:
  class ProtectedDisk;
  struct Look {
    bool all_ready = true;
    std::uint64_t behind{};  ///< bytes that were written and are not here
    std::uint64_t done{}, total{};
  };
  DiskCapture(qmp::Session& session, DiskCaptureOptions options);
  [[nodiscard]] Result<Look> look(bool also_for_dirty_bytes);
  [[nodiscard]] Result<Look> steer();

  qmp::Session& session_;
  const DiskCaptureOptions options_;
  bool stopped_ = false;
  std::uint64_t copied_pages_ = 0;  // handed over since the last cut
  std::vector<std::unique_ptr<ProtectedDisk>> disks_;
  std::chrono::steady_clock::time_point told_{};
  std::jthread beside_;
};

}  // namespace vmshadow::capture
