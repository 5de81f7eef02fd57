// Epochs from an unmodified QEMU through its COLO checkpoints: we speak the secondary's half.
//
//   detached ─attach()─► initial ─(QEMU in colo, READY)─► ready ─take_epoch()─► ready …
//       ▲                   │                               │
//       └──── detach() ◄────┴──── any error ────────────────┘
//
// One checkpoint (Q is QEMU, time goes down):
//
//   us ─ migrate-set-parameters x-checkpoint-delay ─► Q     asks for a checkpoint
//   Q  ─ REQUEST ─► us                                      the VM still runs
//   us ─ query-status ─► Q                                  the gate: reply only to a running VM,
//   us ─ REPLY ─► Q                                         QEMU would abort or undo a suspend
//   Q  ─ VMSTATE_SEND ─► us                                 the VM stands still: the cut
//   us ─ RECEIVED, LOADED ─► Q                              early: QEMU reads them after its sends
//   Q  ─ dirty RAM, 00, VMSTATE_SIZE, devices ─► us         then QEMU resumes the VM
//
// Where disks are protected too, the first epoch holds all of them: QEMU waits in its first pass
// until they are copied. An epoch before which very much was written to them is open in the sink
// already while the guest still runs.
//
// All calls come from one thread. Events must be fed to the VmEvents given at construction.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>

#include <vmshadow/clock.h>
#include <vmshadow/page_source.h>

#include "capture/disk_capture.h"
#include "capture/epoch_drain.h"
#include "capture/first_pass_limit.h"
#include "capture/migration_settings.h"
#include "capture/vm_events.h"
#include "qmp/session.h"

namespace vmshadow::capture {

struct ColoOptions {
  /// Longest silence of QEMU's while it should be sending.
  std::chrono::milliseconds stall{5000};
  /// Longest wait for a running VM's REQUEST after we asked for a checkpoint.
  std::chrono::milliseconds request{10000};
  /// Asked of the kernel for the stream's socket: lets QEMU finish its sends, and so resume the VM,
  /// while we are descheduled.
  int socket_buffer_bytes = 64 << 20;
  /// When to acknowledge: at the cut (QEMU resumes as soon as its own writes are done), or only
  /// when everything was read.
  bool early_acknowledge = true;
  /// Called just before QEMU is told to migrate, with what must be put back afterwards: from then
  /// until detach() returned well, somebody must see to the VM if this process dies.
  std::function<void(const MigrationSettings&)> on_attach;
  /// Begun for this VM; outlives the source. Null: disks are none, or not protected.
  DiskCapture* disks = nullptr;
  /// For how long at most an epoch is put off, while the guest runs, for the disks' mirrors.
  std::chrono::milliseconds disks_follow{20};
  /// Called every few milliseconds while an epoch waits for the disks' mirrors, whose guest writes
  /// much; an error ends the capture.
  std::function<Status()> on_follow;
  /// Asked while the disks are copied, and during the first pass while the guest runs; true ends it
  /// with Errc::cancelled.
  std::function<bool()> cancelled;
  /// Called about once a second during the first pass, with the pages read so far.
  std::function<void(std::uint64_t pages)> on_first_pass;
  /// Set to the monotonic nanoseconds at which we let QEMU stop the VM, back to 0 once it runs
  /// again: for a guard that watches the clock. May be null.
  std::atomic<std::int64_t>* stopped_since_ns = nullptr;
};

class ColoSource final : public PageSource {
 public:
  /// All outlive the source. `session`'s events go to `events`.
  ColoSource(qmp::Session& session, VmEvents& events, const Clock& clock, ColoOptions options = {});
  ~ColoSource() override;

  [[nodiscard]] Result<EpochStats> attach(PageSink& sink, Epoch first) override;
  [[nodiscard]] Result<EpochStats> take_epoch() override;
  [[nodiscard]] Status detach() override;

  /// take_epoch(), and calls `at_cut` when the epoch is complete in the sink while the VM still
  /// stands still; it resumes after the call. (A planned failover, output commit, an exact check.)
  [[nodiscard]] Result<EpochStats> take_epoch_holding(const std::function<Status()>& at_cut);

 private:
  enum class State { detached, initial, ready, broken };

  [[nodiscard]] Status read_initial(PageSink& sink, Epoch first, MachineDescription& machine,
                                    FirstPassLimit& limit);
  [[nodiscard]] Status copy_disks();
  [[nodiscard]] Status bring_disks_near();
  [[nodiscard]] Status wait_for_colo();
  [[nodiscard]] Status wait_for_request();
  [[nodiscard]] Status request_checkpoint();
  [[nodiscard]] Status pass_gate();
  [[nodiscard]] Result<EpochStats> run_checkpoint(MonotonicTime asked,
                                                  const std::function<Status()>& at_cut);
  /// Takes what `end` holds.
  [[nodiscard]] Status end_epoch(EpochEnd& end, EpochStats& stats);
  [[nodiscard]] Status expect(MigrationStream::Event event);
  [[nodiscard]] Result<bool> first_pass_gate(MonotonicTime& told);
  void mark_stopped(bool stopped);
  void finish_stats(EpochStats& stats, std::uint64_t stops_before);
  void split_at_events(EpochStats& stats, WallTime replied, WallTime all_read) const;

  qmp::Session& session_;
  VmEvents& events_;
  const Clock& clock_;
  const ColoOptions options_;
  State state_ = State::detached;
  PageSink* sink_ = nullptr;
  std::unique_ptr<EpochDrain> drain_;
  Epoch next_epoch_{};
  bool epoch_open_ = false;  // in the sink
  BlockIndex first_disk_{};
  MonotonicTime copied_{};        // when the disks' first copies were last taken from
  bool request_pending_ = false;  // QEMU has sent a REQUEST that we have not answered
  bool migrating_ = false;        // `migrate` was issued and must be undone
  std::optional<MigrationSettings> settings_before_;
};

}  // namespace vmshadow::capture
