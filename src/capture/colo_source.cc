#include "capture/colo_source.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <thread>
#include <utility>

#include "base/assert.h"
#include "capture/colo_probe.h"
#include "capture/colo_versions.h"
#include "capture/machine_recorder.h"
#include "capture/migration_settings.h"
#include "capture/release_vm.h"
#include "capture/stream_socket.h"
#include "qmp/commands.h"

namespace vmshadow::capture {
namespace {

using Event = MigrationStream::Event;
using std::chrono::microseconds;
using std::chrono::milliseconds;

constexpr milliseconds kRequestRetry{500};
constexpr milliseconds kCopyEvery{10};
/// What a stopped VM may wait for: some milliseconds of copying; some tens of them after a while.
constexpr std::uint64_t kBehindAtFirst = 2 << 20;
constexpr std::uint64_t kBehindMost = 64 << 20;
constexpr std::int64_t kSaySlowAfterS = 5;

microseconds micros(std::chrono::nanoseconds d) {
  return std::chrono::duration_cast<microseconds>(d);
}

}  // namespace

ColoSource::ColoSource(qmp::Session& session, VmEvents& events, const Clock& clock,
                       ColoOptions options)
    : session_(session), events_(events), clock_(clock), options_(std::move(options)) {}

ColoSource::~ColoSource() {
  if (auto left = detach(); !left) spdlog::error("leaving the VM: {}", left.error().message);
}

Result<EpochStats> ColoSource::attach(PageSink& sink, Epoch first) {
  VMSHADOW_ASSERT(state_ == State::detached);
  VMSHADOW_TRY(check_colo(session_));
  VMSHADOW_TRY(probe_vm(session_));
  MachineDescription machine;
  const auto disks =
      options_.disks != nullptr ? options_.disks->disks() : std::vector<qmp::WritableDisk>();
  VMSHADOW_ASSIGN(machine.json, record_machine(session_, disks));
  for (const qmp::WritableDisk& disk : disks) machine.disks.push_back({disk.name, disk.bytes});

  sink_ = &sink;
  next_epoch_ = first;
  const std::uint64_t stops_before = events_.stops();
  const MonotonicTime start = clock_.monotonic();
  VMSHADOW_ASSIGN(settings_before_, MigrationSettings::read(session_, CaptureKind::colo));
  state_ = State::initial;  // from here on detach() has something to put back
  if (options_.on_attach) options_.on_attach(*settings_before_);
  VMSHADOW_TRY(settings_before_->apply_for_capture(session_));
  VMSHADOW_ASSIGN(
      auto fd, open_stream(session_, {options_.socket_buffer_bytes, options_.stall}, migrating_));
  drain_ = std::make_unique<EpochDrain>(std::move(fd), *sink_);
  drain_->stream().set_version(colo_version(session_.version()));
  FirstPassLimit limit(session_);
  if (auto read = read_initial(sink, first, machine, limit); !read) {
    drain_->close();  // a QEMU that is stuck in sending to us could not answer the limit's question
    return fail(std::move(read).error());
  }

  // The VM stands still since RAM's last pass (its STOP is the cut); READY lets it run.
  EpochStats stats;
  stats.epoch = first;
  stats.ram = micros(clock_.monotonic() - start);
  VMSHADOW_TRY(drain_->stream().end_initial());
  if (options_.disks != nullptr) {
    options_.disks->steer_no_more();
    VMSHADOW_TRY(options_.disks->cut(options_.stall));
  }
  const VmEvents::Cut cut = events_.cut_since(stops_before, clock_);
  EpochEnd end{first, cut.wall, cut.monotonic, drain_->stream().take_device_state()};
  VMSHADOW_TRY(drain_->send({ColoMessage::checkpoint_ready}));
  stats.device_bytes = end.device_state.size();
  VMSHADOW_TRY(end_epoch(end, stats));

  stats.pages = drain_->stream().pages_seen();
  stats.zero_pages = drain_->stream().zero_pages_seen();
  stats.stream_bytes = drain_->bytes_read();
  finish_stats(stats, stops_before);
  next_epoch_ = first.next();
  state_ = State::ready;
  return stats;
}

// What the guest writes meanwhile gathers: RAM in QEMU's bitmap, for nobody reads its first pass,
// and the disks' in their mirrors.
Status ColoSource::copy_disks() {
  if (options_.disks == nullptr) return {};
  for (;;) {
    VMSHADOW_ASSIGN(const bool copied, options_.disks->copy(*sink_, first_disk_));
    if (copied) return {};
    if (options_.cancelled && options_.cancelled()) {
      return fail(Errc::cancelled, "told to stop while the disks were copied");
    }
    std::this_thread::sleep_for(kCopyEvery);
  }
}

// Until a cut need not wait for the mirrors for long. A guest that goes on writing as fast as they
// copy may stand still for longer, little by little.
Status ColoSource::bring_disks_near() {
  if (options_.disks == nullptr) return {};
  const MonotonicTime begun = clock_.monotonic();
  std::uint64_t behind_most = kBehindAtFirst;
  for (bool said = false;;) {
    VMSHADOW_ASSIGN(const bool near, options_.disks->follow(options_.disks_follow, behind_most));
    if (near) return {};
    if (!std::exchange(epoch_open_, true)) {
      sink_->begin_epoch({next_epoch_, false, nullptr, true});
    }
    VMSHADOW_TRY(options_.disks->copy(*sink_, first_disk_));
    if (options_.cancelled && options_.cancelled()) {
      return fail(Errc::cancelled, "told to stop while the disks were followed");
    }
    if (options_.on_follow) VMSHADOW_TRY(options_.on_follow());
    const auto for_s = (clock_.monotonic() - begun) / std::chrono::seconds(1);
    behind_most = std::min(kBehindAtFirst << std::min<std::int64_t>(for_s, 6), kBehindMost);
    if (for_s >= kSaySlowAfterS && !std::exchange(said, true)) {
      spdlog::warn("epoch {} waits: the guest writes to its disks about as fast as they are copied",
                   next_epoch_.value);
    }
    std::this_thread::sleep_for(kCopyEvery);
  }
}

Status ColoSource::end_epoch(EpochEnd& end, EpochStats& stats) {
  if (options_.disks != nullptr) {
    VMSHADOW_ASSIGN(auto taken, options_.disks->take_cut());
    stats.disk_pages = taken.pages();
    std::move(taken).give_to(*sink_, first_disk_);
  }
  sink_->end_epoch(std::move(end));
  epoch_open_ = false;
  return {};
}

Status ColoSource::read_initial(PageSink& sink, Epoch first, MachineDescription& machine,
                                FirstPassLimit& limit) {
  VMSHADOW_TRY(expect(Event::layout));
  machine.configuration = drain_->stream().configuration();
  machine.layout = drain_->stream().layout();
  if (machine.block_count() > kBlocksMax) {
    return fail(Errc::unsupported,
                fmt::format("the VM has {} RAM blocks and {} disks: together they may be {}",
                            machine.layout.blocks.size(), machine.disks.size(), kBlocksMax));
  }
  first_disk_ = BlockIndex{static_cast<std::uint16_t>(machine.layout.blocks.size())};
  sink.begin_epoch({first, true, &machine});
  VMSHADOW_TRY(copy_disks());
  // From here on this thread must not wait for the monitor, as for FirstPassLimit.
  if (options_.disks != nullptr) options_.disks->steer_beside();

  MonotonicTime told = clock_.monotonic();
  VMSHADOW_ASSIGN(const Event event,
                  drain_->next(options_.stall, [&] { return first_pass_gate(told); }));
  // Its thread is waited for when the VM runs again: it may be in the midst of a question.
  limit.stop();
  if (event != Event::device_tail) return fail(Errc::protocol, "QEMU's first pass has no end");
  // QEMU sends RAM's end with the VM stopped, and from now on waits for us.
  mark_stopped(true);
  if (drain_->stream().return_path_opened()) {
    VMSHADOW_TRY(drain_->send({kReturnPathShut[0], kReturnPathShut[1]}));
  }
  return wait_for_colo();
}

// While the guest runs, a full sink may slow QEMU down, and the pass may be given up; once it
// stands still, nothing may hold us.
Result<bool> ColoSource::first_pass_gate(MonotonicTime& told) {
  if (events_.is_stopped()) return false;
  if (options_.cancelled && options_.cancelled()) {
    return fail(Errc::cancelled, "told to stop during the first pass");
  }
  const MonotonicTime now = clock_.monotonic();
  if (options_.disks != nullptr && now - copied_ >= kCopyEvery) {
    copied_ = now;
    VMSHADOW_TRY(options_.disks->take_copied(*sink_, first_disk_));
  }
  if (options_.on_first_pass && now - told >= std::chrono::seconds(1)) {
    told = now;
    options_.on_first_pass(drain_->stream().pages_seen());
  }
  return true;
}

// QEMU flushes the device tail before it says `colo`; so once it does, all of it has arrived.
Status ColoSource::wait_for_colo() {
  const auto deadline = io::deadline_after(options_.stall);
  for (;;) {
    VMSHADOW_TRY(drain_->take_arrived());
    VMSHADOW_ASSIGN(const qmp::MigrationInfo info, qmp::query_migrate(session_));
    if (info.status == "colo") return drain_->take_arrived();
    if (!info.active()) {
      return fail(
          Errc::protocol,
          fmt::format("QEMU ended the migration with status {} instead of entering COLO{}{}",
                      info.status, info.error.empty() ? "" : ": ", info.error));
    }
    if (io::Deadline::clock::now() >= deadline) {
      return fail(Errc::timed_out, fmt::format("QEMU did not enter COLO (status {})", info.status));
    }
    std::this_thread::sleep_for(milliseconds{1});
  }
}

Status ColoSource::expect(Event wanted) {
  VMSHADOW_ASSIGN(const Event event, drain_->next(options_.stall));
  if (event != wanted) return fail(Errc::protocol, "QEMU's checkpoint is out of order");
  return {};
}

Status ColoSource::request_checkpoint() {
  return qmp::migrate_set_parameters(session_, {{"x-checkpoint-delay", kCheckpointDelayMs}});
}

// A request made while QEMU finishes the checkpoint before is lost: ask again.
Status ColoSource::wait_for_request() {
  if (request_pending_) return {};
  const auto deadline = io::deadline_after(options_.request);
  for (;;) {
    VMSHADOW_TRY(request_checkpoint());
    auto event = drain_->next(kRequestRetry);
    if (event) {
      if (*event != Event::request) return fail(Errc::protocol, "QEMU's checkpoint out of order");
      request_pending_ = true;
      return {};
    }
    if (event.error().code != Errc::timed_out) return fail(std::move(event).error());
    if (io::Deadline::clock::now() >= deadline) {
      return fail(Errc::timed_out, "QEMU does not begin a checkpoint though asked to");
    }
  }
}

// QEMU aborts if it is told to stop a VM that is panicked or in an I/O error, and resumes one that
// was suspended: so only a running VM is ever stopped. Withholding REPLY harms nobody.
Status ColoSource::pass_gate() {
  VMSHADOW_ASSIGN(const qmp::RunState run_state, qmp::query_status(session_));
  if (run_state.running) return {};
  return fail(Errc::cancelled,
              fmt::format("the VM is not running (status {}); no epoch taken", run_state.text));
}

Result<EpochStats> ColoSource::take_epoch() { return take_epoch_holding({}); }

Result<EpochStats> ColoSource::take_epoch_holding(const std::function<Status()>& at_cut) {
  VMSHADOW_ASSERT(state_ == State::ready);
  const MonotonicTime asked = clock_.monotonic();
  VMSHADOW_TRY([&]() -> Status {
    auto status = wait_for_request();
    if (status) status = bring_disks_near();
    if (!status && status.error().code != Errc::cancelled) state_ = State::broken;
    return status;
  }());
  VMSHADOW_TRY(pass_gate());
  auto stats = run_checkpoint(asked, at_cut);
  if (!stats) {
    state_ = State::broken;
    epoch_open_ = false;
    sink_->abandon_epoch();
  }
  return stats;
}

Result<EpochStats> ColoSource::run_checkpoint(MonotonicTime asked,
                                              const std::function<Status()>& at_cut) {
  EpochStats stats;
  stats.epoch = next_epoch_;
  MigrationStream& stream = drain_->stream();
  const std::uint64_t pages_before = stream.pages_seen();
  const std::uint64_t zero_before = stream.zero_pages_seen();
  const std::uint64_t bytes_before = drain_->bytes_read();
  const std::uint64_t stops_before = events_.stops();
  // Where the monitor waits for QEMU's sends, the disks' cut must wait for them too.
  const bool disks_last =
      options_.disks != nullptr && colo_version(session_.version()).monitor_waits_for_sends;
  const bool hold = !options_.early_acknowledge || at_cut || disks_last;

  if (!std::exchange(epoch_open_, true)) sink_->begin_epoch({next_epoch_, false, nullptr});
  request_pending_ = false;
  // The cut lies between REPLY and VMSTATE_SEND; counting from REPLY can only overstate the lag.
  const WallTime cut_wall = clock_.wall();
  const MonotonicTime replied = clock_.monotonic();
  mark_stopped(true);
  VMSHADOW_TRY(drain_->send({ColoMessage::checkpoint_reply}));
  VMSHADOW_TRY(expect(Event::cut));
  const MonotonicTime cut = clock_.monotonic();
  const auto cut_disks = [&]() -> Status {
    if (options_.disks == nullptr) return {};
    const MonotonicTime begun = clock_.monotonic();
    VMSHADOW_TRY(options_.disks->cut(options_.stall));
    stats.disks = micros(clock_.monotonic() - begun);
    return {};
  };
  // What QEMU sends meanwhile waits in the socket.
  if (!disks_last) VMSHADOW_TRY(cut_disks());
  if (!hold) {
    VMSHADOW_TRY(drain_->send({ColoMessage::vmstate_received, ColoMessage::vmstate_loaded}));
  }
  VMSHADOW_TRY(expect(Event::ram_done));
  const MonotonicTime ram_done = clock_.monotonic();
  VMSHADOW_TRY(expect(Event::device_done));
  if (disks_last) VMSHADOW_TRY(cut_disks());
  const MonotonicTime device_done = clock_.monotonic();
  const WallTime all_read = clock_.wall();

  EpochEnd end{next_epoch_, cut_wall, replied, stream.take_device_state()};
  stats.device_bytes = end.device_state.size();
  // The disks' part is made ready once the guest runs again, unless it is held for it.
  const bool at_once = hold || options_.disks == nullptr;
  if (at_once) VMSHADOW_TRY(end_epoch(end, stats));
  if (at_cut) VMSHADOW_TRY(at_cut());
  if (hold) {
    VMSHADOW_TRY(drain_->send({ColoMessage::vmstate_received, ColoMessage::vmstate_loaded}));
  }
  next_epoch_ = next_epoch_.next();

  stats.pages = stream.pages_seen() - pages_before;
  stats.zero_pages = stream.zero_pages_seen() - zero_before;
  stats.stream_bytes = drain_->bytes_read() - bytes_before;
  stats.request = micros(replied - asked);
  stats.stop = micros(cut - replied);
  stats.ram = micros(ram_done - cut);
  stats.device = micros(device_done - ram_done);
  finish_stats(stats, stops_before);
  if (!at_once) VMSHADOW_TRY(end_epoch(end, stats));
  drain_->trim();
  if (stats.pause) split_at_events(stats, cut_wall, all_read);
  return stats;
}

// The events carry wall-clock stamps. A clock that is set in mid-checkpoint must not make a phase
// negative, or longer than what was measured around it.
void ColoSource::split_at_events(EpochStats& stats, WallTime replied, WallTime all_read) const {
  const auto stop = events_.last_stop();
  if (!stop) return;
  const auto since = [](std::chrono::microseconds stamp, WallTime then) {
    return stamp - micros(std::chrono::nanoseconds{then.ns});
  };
  const auto until_cut = stats.stop;
  stats.stop = std::clamp(since(*stop, replied), microseconds{0}, until_cut);
  stats.cut = until_cut - stats.stop;
  stats.resume = std::clamp(since(*stop + *stats.pause, all_read), microseconds{0}, *stats.pause);
}

// From before QEMU stops the VM (it tells of that a moment later) until it tells that the VM runs:
// on a busy host we may be late in reading what it has sent, which harms nobody.
void ColoSource::mark_stopped(bool stopped) {
  if (options_.stopped_since_ns == nullptr) return;
  if (!stopped) return events_.end_marking();
  events_.begin_marking(*options_.stopped_since_ns, clock_);
  events_.mark_stopped();
}

// The VM's RESUME follows within QEMU's last step; the next request must not come before it.
void ColoSource::finish_stats(EpochStats& stats, std::uint64_t stops_before) {
  stats.pause = events_.wait_for_pause(stops_before, options_.stall);
  mark_stopped(false);
  if (!stats.pause) {
    spdlog::warn("epoch {}: no STOP and RESUME from the monitor; its pause is not known",
                 stats.epoch.value);
  }
}

Status ColoSource::detach() {
  if (state_ == State::detached) return {};
  state_ = State::detached;
  request_pending_ = false;
  epoch_open_ = false;  // never ended, it never counts
  // First the socket: a QEMU that is stuck sending to us is free again, and so is its monitor.
  drain_.reset();
  const auto left = std::exchange(migrating_, false) ? release_vm(session_) : false;
  mark_stopped(false);
  if (!left) return fail(left.error());
  if (!settings_before_) return {};
  return std::exchange(settings_before_, std::nullopt)->restore(session_);
}

}  // namespace vmshadow::capture
