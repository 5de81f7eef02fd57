#include "capture/full_pass_source.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <thread>
#include <utility>

#include "base/assert.h"
#include "capture/colo_probe.h"
#include "capture/colo_versions.h"
#include "capture/machine_recorder.h"
#include "capture/release_vm.h"
#include "capture/run_state_at_cut.h"
#include "capture/stream_socket.h"
#include "qmp/commands.h"

namespace vmshadow::capture {
namespace {

using Event = MigrationStream::Event;
using std::chrono::microseconds;
using std::chrono::milliseconds;

constexpr microseconds kContRetry{200};
constexpr milliseconds kClosePatience{1000};
constexpr milliseconds kClosesBeforeCont{20};
constexpr milliseconds kIntruderPoll{2};

microseconds not_negative(std::chrono::nanoseconds d) {
  return std::max(std::chrono::duration_cast<microseconds>(d), microseconds{0});
}

tl::unexpected<Error> not_running(const std::string& status) {
  return fail(Errc::cancelled,
              fmt::format("the VM is not running (status {}); no epoch taken", status));
}

/// That the VM is stopped by this migration, not by its administrator or a fault.
bool is_of_migration(const std::string& run_state) {
  return run_state == "finish-migrate" || run_state == "postmigrate";
}

}  // namespace

FullPassSource::FullPassSource(qmp::Session& session, VmEvents& events, const Clock& clock,
                               FullPassOptions options)
    : session_(session), events_(events), clock_(clock), options_(std::move(options)) {}

FullPassSource::~FullPassSource() {
  if (auto left = detach(); !left) spdlog::error("leaving the VM: {}", left.error().message);
}

Result<EpochStats> FullPassSource::attach(PageSink& sink, Epoch first) {
  VMSHADOW_ASSERT(state_ == State::detached);
  VMSHADOW_TRY(check_full_pass(session_));
  VMSHADOW_TRY(probe_vm(session_));
  VMSHADOW_ASSIGN(machine_.json, record_machine(session_));
  sink_ = &sink;
  next_epoch_ = first;
  first_ = true;
  epoch_open_ = false;
  auto stats = take_pass({});
  if (stats) {
    state_ = State::ready;
    return stats;
  }
  // Only a protection that has begun waits for a suspended VM.
  Error error = std::move(stats).error();
  const bool told_to_stop = options_.cancelled && options_.cancelled();
  if (error.code == Errc::cancelled && !told_to_stop) error.code = Errc::invalid_argument;
  return fail(std::move(error));
}

Result<EpochStats> FullPassSource::take_epoch() { return take_epoch_holding({}); }

Result<EpochStats> FullPassSource::take_epoch_holding(const std::function<Status()>& at_cut) {
  VMSHADOW_ASSERT(state_ == State::ready);
  auto stats = take_pass(at_cut);
  if (!stats && stats.error().code != Errc::cancelled) state_ = State::broken;
  return stats;
}

Result<EpochStats> FullPassSource::take_pass(const std::function<Status()>& at_cut) {
  VMSHADOW_TRY(pass_gate());
  auto pass = run_pass(at_cut);
  // detach() would try it again.
  if (auto left = leave_pass(pass.has_value()); !left) return fail(std::move(left).error());
  if (pass) return end_epoch(*std::move(pass));
  // Its state has a name again.
  if (pass.error().code == Errc::cancelled && (suspended_ || block_job_)) VMSHADOW_TRY(pass_gate());
  return fail(std::move(pass).error());
}

Status FullPassSource::pass_gate() {
  VMSHADOW_ASSIGN(const qmp::RunState run_state, qmp::query_status(session_));
  if (!run_state.running) return not_running(run_state.text);
  VMSHADOW_ASSIGN(const qmp::MigrationInfo migration, qmp::query_migrate(session_));
  if (migration.active()) {
    return fail(Errc::cancelled, fmt::format("a migration of this VM that is not ours is under way "
                                             "(status {}); no epoch taken until it is over",
                                             migration.status));
  }
  VMSHADOW_ASSIGN(const auto jobs, qmp::query_block_jobs(session_));
  if (jobs.empty()) return {};
  std::vector<std::string> ids;
  for (const qmp::BlockJob& job : jobs) ids.push_back(job.id);
  return fail(Errc::cancelled,
              fmt::format("a block job of this VM exists ({}), and QEMU may not survive that it "
                          "writes at the end of a full pass; no epoch taken until it is over",
                          fmt::join(ids, ", ")));
}

Result<FullPassSource::Pass> FullPassSource::run_pass(const std::function<Status()>& at_cut) {
  Pass pass;
  pass.asked = clock_.monotonic();
  pass.stops_before = events_.stops();
  suspended_ = false;
  block_job_ = false;
  VMSHADOW_ASSIGN(settings_before_, MigrationSettings::read(session_, CaptureKind::full_pass));
  if (options_.on_pass_begin) options_.on_pass_begin(*settings_before_);
  parameters_in_force_ = true;
  VMSHADOW_TRY(settings_before_->apply_parameters(session_));
  if (options_.stopped_since_ns != nullptr) {
    events_.begin_marking(*options_.stopped_since_ns, clock_);
  }
  auto fd = open_stream(session_,
                        {options_.socket_buffer_bytes, options_.stall, first_,
                         [this] { return apply_capabilities(); }},
                        migrating_);
  if (!fd) return fail(why_not_begun(std::move(fd).error()));
  drain_ = std::make_unique<EpochDrain>(*std::move(fd), *sink_);
  drain_->stream().set_version(colo_version(session_.version()));

  FirstPassLimit limit(session_, limit_options());
  auto whole = read_pass(pass);
  // Its thread is waited for when the VM runs again: it may be in the midst of a question.
  limit.stop();
  if (!whole) {
    drain_->close();  // a QEMU that is stuck in sending to us could not answer
    return fail(std::move(whole).error());
  }
  if (at_cut) VMSHADOW_TRY(at_cut());
  VMSHADOW_TRY(resume_vm());
  pass.pages = drain_->stream().pages_seen();
  pass.zero_pages = drain_->stream().zero_pages_seen();
  pass.stream_bytes = drain_->bytes_read();
  return pass;
}

FirstPassLimit::Options FullPassSource::limit_options() {
  FirstPassLimit::Options watch;
  watch.on_look = [this]() -> Status {
    VMSHADOW_ASSIGN(const qmp::RunState run_state, qmp::query_status(session_));
    if (!run_state.running && !is_of_migration(run_state.text)) suspended_ = true;
    VMSHADOW_ASSIGN(const auto jobs, qmp::query_block_jobs(session_));
    if (!jobs.empty()) block_job_ = true;
    return {};
  };
  if (first_) {
    // This pause may be longer than the guard's deadline, or a guest that writes much would never
    // be protected.
    events_.allow_sending(FirstPassLimit::kInitial);
    watch.on_raise = [this](milliseconds pause) { events_.allow_sending(pause); };
  } else {
    watch.most = options_.pause_most;
  }
  return watch;
}

Status FullPassSource::read_pass(Pass& pass) {
  VMSHADOW_ASSIGN(const Event first,
                  drain_->next(options_.stall, [&] { return while_guest_runs(); }));
  if (first != Event::layout) return fail(Errc::protocol, "QEMU's migration has no RAM");
  VMSHADOW_TRY(begin_or_go_on());
  VMSHADOW_ASSIGN(const Event last,
                  drain_->next(options_.stall, [&] { return while_guest_runs(); }));
  if (last != Event::device_tail) return fail(Errc::protocol, "QEMU's RAM has no end");
  events_.mark_stopped();
  pass.ram_done = clock_.monotonic();
  VMSHADOW_TRY(drain_->read_tail(options_.stall));
  pass.all_read = clock_.monotonic();
  pass.device_state = drain_->stream().take_device_state();
  const auto run_state = run_state_at_cut(pass.device_state);
  if (!run_state) {
    return fail(Errc::unsupported,
                "this machine's state does not say whether it ran (machine types of QEMU 2.3 and "
                "older)");
  }
  // It was stopped in mid-pass, and not by us: so it must not be resumed by us.
  if (*run_state != "running") return not_running(*run_state);
  return {};
}

// The first pass tells what the machine is; all others must be of the same.
Status FullPassSource::begin_or_go_on() {
  const MigrationStream& stream = drain_->stream();
  if (first_ && !epoch_open_) {
    machine_.configuration = stream.configuration();
    machine_.layout = stream.layout();
  } else if (stream.layout() != machine_.layout ||
             stream.configuration() != machine_.configuration) {
    return fail(Errc::protocol, "the VM's memory is laid out anew (was a device plugged?)");
  }
  if (!std::exchange(epoch_open_, true)) {
    sink_->begin_epoch({next_epoch_, first_, first_ ? &machine_ : nullptr, true});
  }
  return {};
}

Result<bool> FullPassSource::while_guest_runs() {
  // A VM that stands still because it was suspended: its pass is given up, for it could not end.
  if (suspended_) return fail(Errc::cancelled, "the VM was stopped in mid-pass; no epoch taken");
  if (block_job_) {
    return fail(Errc::cancelled, "a block job of the VM has begun in mid-pass; no epoch taken");
  }
  if (events_.is_stopped()) return false;  // nothing may hold us
  if (options_.cancelled && options_.cancelled()) {
    return fail(Errc::cancelled, "told to stop during a pass");
  }
  if (options_.on_progress) VMSHADOW_TRY(options_.on_progress(drain_->stream().pages_seen()));
  return true;
}

// QEMU completes the migration on our word, and then takes `cont`; before it has, it refuses it.
Status FullPassSource::resume_vm() {
  const std::uint64_t ended_before = events_.migrations_ended();
  owe_resume(true);
  VMSHADOW_TRY(drain_->send({kReturnPathShut[0], kReturnPathShut[1]}));
  if (!events_.wait_for_migration_end(ended_before, options_.stall)) {
    return fail(Errc::timed_out, "QEMU does not complete the migration");
  }
  migrating_ = false;
  // QEMU takes no `migrate` until the VM runs again: so nobody's comes before QEMU has let go of
  // our stream, which would wedge 7.2. But the VM does not wait long for it; leave_pass() does.
  static_cast<void>(drain_->wait_for_close(kClosesBeforeCont));
  const auto deadline = io::deadline_after(options_.stall);
  for (;;) {
    auto resumed = qmp::cont(session_);
    if (resumed) break;
    if (resumed.error().code != Errc::invalid_argument || io::Deadline::clock::now() >= deadline) {
      return fail(std::move(resumed).error().with_context("resuming the VM"));
    }
    std::this_thread::sleep_for(kContRetry);
  }
  owe_resume(false);
  events_.mark_resumed();
  return {};
}

// After a pass that is whole, QEMU closes the stream when it is ready for the next `migrate`: one
// issued before would wedge 7.2. After one that is not, we close it, and QEMU's migration fails.
Status FullPassSource::leave_pass(bool whole) {
  if (!settings_before_) return {};
  if (suspended_) events_.end_marking();  // it stands still, but not for us
  if (whole && !drain_->wait_for_close(kClosePatience)) {
    return fail(Errc::timed_out, "QEMU does not close its migration stream");
  }
  drain_.reset();
  if (migrating_ || resume_owed_) {
    VMSHADOW_TRY(release_vm(session_, resume_owed_));
    migrating_ = false;
  }
  owe_resume(false);
  events_.end_marking();
  if (auto back = put_settings_back(); !back) {
    if (capabilities_in_force_ && back.error().code == Errc::invalid_argument) {
      VMSHADOW_TRY(end_intruder());
    }
    VMSHADOW_TRY(put_settings_back());
  }
  settings_before_.reset();
  if (options_.on_pass_end) options_.on_pass_end();
  return {};
}

// Those which the VM could stand still for, if they met another's migration, only now.
Status FullPassSource::apply_capabilities() {
  capabilities_in_force_ = true;
  auto applied = settings_before_->apply_capabilities(session_);
  if (!applied && applied.error().code == Errc::invalid_argument) capabilities_in_force_ = false;
  return applied;
}

Status FullPassSource::put_settings_back() {
  if (capabilities_in_force_) VMSHADOW_TRY(settings_before_->restore_capabilities(session_));
  capabilities_in_force_ = false;
  // Last: by them one knows, if we die, that what is set is a capture's.
  if (parameters_in_force_) VMSHADOW_TRY(settings_before_->restore_parameters(session_));
  parameters_in_force_ = false;
  return {};
}

// QEMU refused what a pass begins with: perhaps for another's migration, which began just before.
Error FullPassSource::why_not_begun(Error error) {
  if (error.code != Errc::invalid_argument) return error;
  const auto migration = qmp::query_migrate(session_);
  // It may be over by now. The words are those of all QEMUs that were looked at, 5.0 to 10.0.
  const bool said = error.message.find("migration process in progress") != std::string::npos;
  if (!said && (!migration || !migration->active())) {
    const auto run_state = qmp::query_status(session_);
    return run_state && !run_state->running ? not_running(run_state->text).value() : error;
  }
  return Error{Errc::cancelled,
               "a migration of this VM that is not ours began in the moment in which a pass was to "
               "begin; no epoch taken"};
}

// Capabilities cannot be put back while a migration goes on. It began between them and our own
// `migrate`, or just after `cont`, so it has our return path: where it goes, nobody may know of
// that, and the VM would stand still at its end. Cancelling it leaves the VM running, except where
// it goes to a program (exec:): then QEMU waits for that program's answer, and for its end.
Status FullPassSource::end_intruder() {
  VMSHADOW_ASSIGN(qmp::MigrationInfo migration, qmp::query_migrate(session_));
  if (!migration.active()) return {};
  spdlog::warn(
      "a migration of this VM began in the moment in which vmshadow's migration settings were in "
      "force; it is cancelled, and the VM runs on here: start it again");
  const auto deadline = io::deadline_after(options_.stall);
  auto told = qmp::migrate_cancel(session_);
  if (!told) spdlog::debug("cancelling it: {}", told.error().message);
  while (migration.active()) {
    if (io::Deadline::clock::now() >= deadline) {
      return fail(Errc::timed_out,
                  fmt::format("a migration that began with vmshadow's settings cannot be cancelled "
                              "(status {}): end what it goes to (with exec:, that program)",
                              migration.status));
    }
    std::this_thread::sleep_for(kIntruderPoll);
    VMSHADOW_ASSIGN(migration, qmp::query_migrate(session_));
  }
  return {};
}

EpochStats FullPassSource::end_epoch(Pass pass) {
  const auto pause = events_.wait_for_pause(pass.stops_before, options_.stall);
  const VmEvents::Cut cut = events_.cut_since(pass.stops_before, clock_);
  EpochStats stats;
  stats.epoch = next_epoch_;
  stats.pages = pass.pages;
  stats.zero_pages = pass.zero_pages;
  stats.stream_bytes = pass.stream_bytes;
  stats.device_bytes = pass.device_state.size();
  stats.pause = pause;
  stats.pass = not_negative(pass.all_read - pass.asked);
  stats.request = not_negative(cut.monotonic - pass.asked);
  stats.ram = not_negative(pass.ram_done - cut.monotonic);
  stats.device = not_negative(pass.all_read - pass.ram_done);
  if (pause) stats.resume = std::max(*pause - stats.ram - stats.device, microseconds{0});
  if (first_) stats.ram = *stats.pass;
  sink_->end_epoch({next_epoch_, cut.wall, cut.monotonic, std::move(pass.device_state)});
  epoch_open_ = false;
  first_ = false;
  next_epoch_ = next_epoch_.next();
  return stats;
}

void FullPassSource::owe_resume(bool owed) {
  resume_owed_ = owed;
  if (options_.resume_owed != nullptr) *options_.resume_owed = owed;
}

Status FullPassSource::detach() {
  state_ = State::detached;
  return leave_pass(false);
}

}  // namespace vmshadow::capture
