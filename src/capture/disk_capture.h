// A VM's writable disks, cut at the instant at which its RAM is cut.
//
//            guest's writes                    first copy, then the same writes
//   guest ───────────────────► QEMU ─► disk    ┌──────────────────────────────────┐
//                                 └─ mirror ───┤ one connection per disk          ▼
//                                              └──────────────────────────► DiskTarget ─ cut() ─►
//                              QEMU's export of the disk ─► DiskReader ─► the rest of pages ┘
//
//   begin() ─► copy() … copy() true ─► cut() ─► take_cut() ─► cut() ─► take_cut() …
//
// QEMU drains the disks when it stops the VM, and a guest's write is complete only once our target
// has it: so at the cut the targets hold all that the guest wrote before, and nothing else. What is
// told about a page that the guest wrote in part is in disk_target.h.
//
// Whoever dies while this is under way leaves QEMU with a mirror whose connection is closed: the
// next write ends the job, and the guest's write succeeds. leave_disks() takes out what is left.
#pragma once

#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <vmshadow/machine.h>
#include <vmshadow/page_sink.h>
#include <vmshadow/result.h>

#include "qmp/commands.h"
#include "qmp/session.h"

namespace vmshadow::capture {

struct DiskCaptureOptions {
  /// Of each disk, in memory, between two cuts; past that its mirror ends.
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
  /// (leave_disks()). `session` outlives it. Errc::unsupported: a disk that cannot be mirrored;
  /// Errc::in_use: something else uses what this needs. After an error nothing is left in QEMU.
  [[nodiscard]] static Result<std::unique_ptr<DiskCapture>> begin(qmp::Session& session,
                                                                  DiskCaptureOptions options = {});
  /// stop(), and tells the log what went wrong.
  ~DiskCapture();
  DiskCapture(const DiskCapture&) = delete;
  DiskCapture& operator=(const DiskCapture&) = delete;

  /// In the order in which the machine record lists them.
  [[nodiscard]] std::vector<qmp::WritableDisk> disks() const;

  /// Of the first copy, hands over to `sink`, in whose open epoch the disks' blocks begin at
  /// `first`, what it has room for; to be called every few milliseconds while the guest runs. True
  /// once every disk has been copied: from then on cuts are whole.
  [[nodiscard]] Result<bool> copy(PageSink& sink, BlockIndex first);
  /// While the guest runs, before a cut: waits until what it wrote in part is known, at most so
  /// long.
  void wait_until_known(std::chrono::milliseconds limit);
  /// The VM stands still, and its disks are drained. Takes microseconds.
  void cut();
  /// What the last cut took. Null: that cannot be an epoch (pages are known in part only) and is
  /// part of the next cut. Any error: the mirror has ended, or was too slow; the disks are to be
  /// captured anew. To be called before the next cut, while the VM runs again.
  class Taken;
  [[nodiscard]] Result<std::unique_ptr<Taken>> take_cut();

  /// Leaves QEMU as it was. The guest runs on all the while.
  [[nodiscard]] Status stop();

  class Taken {
   public:
    [[nodiscard]] std::uint64_t pages() const { return pages_; }
    /// Into its open epoch.
    void give_to(PageSink& sink, BlockIndex first) &&;

   private:
    friend class DiskCapture;
    std::vector<std::shared_ptr<const class WrittenPages>> by_disk_;
    std::uint64_t pages_ = 0;
  };

 private:
  class ProtectedDisk;
  DiskCapture(qmp::Session& session, DiskCaptureOptions options);
  [[nodiscard]] Status begin_reading();
  [[nodiscard]] Status read_images();
  [[nodiscard]] Status read_exports();
  [[nodiscard]] Status begin_disks();

  qmp::Session& session_;
  const DiskCaptureOptions options_;
  bool serves_ = false;  // QEMU's NBD server is ours
  bool stopped_ = false;
  std::vector<std::unique_ptr<ProtectedDisk>> disks_;
  std::chrono::steady_clock::time_point told_{};
};

/// Takes out of QEMU what a sidecar that has died left of its captures of disks. True if there was
/// anything.
[[nodiscard]] Result<bool> leave_disks(qmp::Session& session);

}  // namespace vmshadow::capture
