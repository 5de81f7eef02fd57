// Epochs without COLO: each is a whole migration to us, after which the VM goes on running. Works
// with every QEMU; the sink drops the pages that did not change.
//
// One pass (Q is QEMU, time goes down):
//
//   us ─ query-status, … ─► Q                  only a running VM that nobody migrates or copies
//   us ─ migrate ─► Q                          our settings are in force from here
//   Q  ─ RAM, again and again ─► us            the VM runs; newest page wins
//   Q  ─ the rest of RAM, devices ─► us        it stands still: the cut. QEMU waits for our word
//   us ─ return path: SHUT ─► Q                the pass is whole, so it may complete
//   Q  ─ closes the stream ─► us               ready for another one; until `cont` it takes none
//   us ─ cont ─► Q                             the VM runs
//   us ─ the operator's settings ─► Q          between two passes nothing of ours is left
//
// Up to the SHUT, the migration fails where we die or close the stream, and QEMU resumes the VM by
// itself (seen: within 0.1 s). Only from there to `cont` the VM's life hangs on us: `resume_owed`.
//
// What a pass has brought when it must be given up (the VM was suspended meanwhile, somebody
// cancelled it) stays in the sink's open epoch: the next pass sends every page again.
//
// All calls come from one thread. Events must be fed to the VmEvents given at construction.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include <vmshadow/clock.h>
#include <vmshadow/page_source.h>

#include "capture/epoch_drain.h"
#include "capture/first_pass_limit.h"
#include "capture/migration_settings.h"
#include "capture/vm_events.h"
#include "qmp/session.h"

namespace vmshadow::capture {

struct FullPassOptions {
  /// Longest silence of QEMU's while it should be sending.
  std::chrono::milliseconds stall{5000};
  /// Asked of the kernel for the stream's socket. What it holds when the VM stops must be read
  /// before the VM runs again.
  int socket_buffer_bytes = 4 << 20;
  /// A pass ends once QEMU can send the rest within 50 ms, or, where a guest writes too fast for
  /// that, within up to this. The first pass is not bounded so: it ends whatever the guest writes.
  std::chrono::milliseconds pause_most{150};
  /// Called just before a pass changes anything, with what must be put back: from then until
  /// on_pass_end, somebody must see to the VM if this process dies.
  std::function<void(const MigrationSettings&)> on_pass_begin;
  /// Nothing of the pass is left in QEMU.
  std::function<void()> on_pass_end;
  /// Asked while the guest runs; true ends a pass with Errc::cancelled.
  std::function<bool()> cancelled;
  /// Called often while the guest runs, with the pages read in this pass; an error ends the pass.
  std::function<Status(std::uint64_t pages)> on_progress;
  /// See GuardFlags. Both may be null.
  std::atomic<std::int64_t>* stopped_since_ns = nullptr;
  std::atomic<bool>* resume_owed = nullptr;
};

class FullPassSource final : public PageSource {
 public:
  /// All outlive the source. `session`'s events go to `events`.
  FullPassSource(qmp::Session& session, VmEvents& events, const Clock& clock,
                 FullPassOptions options = {});
  ~FullPassSource() override;

  [[nodiscard]] Result<EpochStats> attach(PageSink& sink, Epoch first) override;
  [[nodiscard]] Result<EpochStats> take_epoch() override;
  [[nodiscard]] Status detach() override;

  /// take_epoch(), and calls `at_cut` when all of the epoch's pages are in the sink while the VM
  /// still stands still. (An exact check.)
  [[nodiscard]] Result<EpochStats> take_epoch_holding(const std::function<Status()>& at_cut);

 private:
  enum class State { detached, ready, broken };
  /// What was read of a pass.
  struct Pass {
    MonotonicTime asked;
    std::uint64_t stops_before{};
    MonotonicTime ram_done;
    MonotonicTime all_read;
    std::vector<std::byte> device_state;
    std::uint64_t pages{}, zero_pages{}, stream_bytes{};
  };

  [[nodiscard]] Result<EpochStats> take_pass(const std::function<Status()>& at_cut);
  [[nodiscard]] Status pass_gate();
  [[nodiscard]] Result<Pass> run_pass(const std::function<Status()>& at_cut);
  [[nodiscard]] FirstPassLimit::Options limit_options();
  [[nodiscard]] Status read_pass(Pass& pass);
  [[nodiscard]] Status begin_or_go_on();
  [[nodiscard]] Result<bool> while_guest_runs();
  [[nodiscard]] Status resume_vm();
  [[nodiscard]] Status leave_pass(bool whole);
  [[nodiscard]] Status apply_capabilities();
  [[nodiscard]] Status put_settings_back();
  [[nodiscard]] Error why_not_begun(Error error);
  [[nodiscard]] Status end_intruder();
  [[nodiscard]] EpochStats end_epoch(Pass pass);
  void owe_resume(bool owed);

  qmp::Session& session_;
  VmEvents& events_;
  const Clock& clock_;
  const FullPassOptions options_;
  State state_ = State::detached;
  PageSink* sink_ = nullptr;
  MachineDescription machine_;
  bool first_ = true;        // no epoch is complete yet
  bool epoch_open_ = false;  // in the sink: of a pass that was given up
  Epoch next_epoch_{};
  std::unique_ptr<EpochDrain> drain_;
  std::optional<MigrationSettings> settings_before_;  // set in a pass
  bool parameters_in_force_ = false;                  // ours; those before are to be put back
  bool capabilities_in_force_ = false;                // the same
  bool migrating_ = false;                            // `migrate` was issued and must be undone
  bool resume_owed_ = false;
  // Seen in this pass, by the limit's thread.
  std::atomic<bool> suspended_{false}, block_job_{false};
};

}  // namespace vmshadow::capture
