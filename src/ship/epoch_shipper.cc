#include "ship/epoch_shipper.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <utility>

#include "base/assert.h"
#include "base/hash.h"

namespace vmshadow::ship {
namespace {

// Sent once this much is encoded: large enough for few system calls, small enough to overlap.
constexpr std::size_t kSendBytes = std::size_t{256} << 10;

std::chrono::microseconds micros(std::chrono::nanoseconds d) {
  return std::chrono::duration_cast<std::chrono::microseconds>(d);
}

}  // namespace

Result<std::unique_ptr<EpochShipper>> EpochShipper::connect(const io::TcpAddress& store,
                                                            const std::string& vm_name,
                                                            const Clock& clock,
                                                            CommitHandler on_commit,
                                                            ShipperOptions options) {
  VMSHADOW_ASSIGN(auto hasher, PageHasher::create());
  VMSHADOW_ASSIGN(auto sender, Sender::connect(store, vm_name, options.sender));
  const format::Welcome& welcome = sender->welcome();
  BaseAnswer base;
  if (options.build_on_committed && welcome.next_epoch != Epoch{0}) {
    BaseRequest request;
    request.ram_bytes_max = options.ram_bytes_max;
    request.on_progress = options.on_base_progress;
    request.cancelled = options.cancelled;
    VMSHADOW_ASSIGN(base, sender->fetch_base(hasher, std::move(request)));
    if (!base.known) spdlog::info("all of VM '{}' is shipped again: {}", vm_name, base.why_not);
  }
  const std::optional<Epoch> builds_on =
      base.known ? std::optional(base.known->epoch) : std::nullopt;
  delta::EpochEncoder encoder(hasher, vm_id(vm_name), welcome.generation, std::move(base.known));
  return std::unique_ptr<EpochShipper>(new EpochShipper(std::move(sender), std::move(encoder),
                                                        builds_on, clock, std::move(on_commit),
                                                        std::move(options)));
}

EpochShipper::EpochShipper(std::unique_ptr<Sender> sender, delta::EpochEncoder encoder,
                           std::optional<Epoch> builds_on, const Clock& clock,
                           CommitHandler on_commit, ShipperOptions options)
    : sender_(std::move(sender)),
      builds_on_(builds_on),
      clock_(clock),
      on_commit_(std::move(on_commit)),
      options_(std::move(options)),
      encoder_(std::move(encoder)) {
  sender_->start([this](Epoch epoch, const format::Ack& ack) { on_ack(epoch, ack); },
                 [this](const Error& error) { set_failure(error); });
  thread_ = std::thread([this] { run(); });
}

EpochShipper::~EpochShipper() {
  queue_.close_and_clear();
  sender_->close();
  thread_.join();
}

void EpochShipper::begin_epoch(const EpochBegin& begin) {
  held_.clear();
  hold_ = !begin.full && !begin.guest_runs;
  if (hold_) return;
  VMSHADOW_ASSERT(begin.full == (begin.machine != nullptr));
  queue_.push(Begin{begin.epoch,
                    begin.full ? std::make_unique<MachineDescription>(*begin.machine) : nullptr},
              0);
}

void EpochShipper::add(PageBatch batch) {
  if (hold_) {
    held_.push_back(std::move(batch));
    return;
  }
  const std::size_t weight = batch.memory_bytes;
  queue_.push(std::move(batch), weight);
}

void EpochShipper::end_epoch(EpochEnd end) {
  {
    const std::lock_guard lock(mutex_);
    ++unacknowledged_;
  }
  if (hold_) queue_.push(Begin{end.epoch, nullptr}, 0);
  for (PageBatch& batch : held_) {
    const std::size_t weight = batch.memory_bytes;
    queue_.push(std::move(batch), weight);
  }
  held_.clear();
  const std::size_t weight = end.device_state.size();
  queue_.push(std::move(end), weight);
}

void EpochShipper::abandon_epoch() {
  held_.clear();
  // Of a held epoch nothing has left; of one that came while the guest ran much has, so its session
  // must end.
  if (!hold_) queue_.push(Abandon{}, 0);
}

Result<bool> EpochShipper::wait_for_room(std::chrono::nanoseconds limit) {
  const auto deadline = std::chrono::steady_clock::now() + limit;
  {
    std::unique_lock lock(mutex_);
    changed_.wait_until(lock, deadline,
                        [&] { return failure_ || unacknowledged_ < options_.unacknowledged_max; });
    if (failure_) return fail(*failure_);
    if (unacknowledged_ >= options_.unacknowledged_max) return false;
  }
  return queue_.wait_below(options_.queued_bytes_max, deadline - std::chrono::steady_clock::now());
}

Status EpochShipper::flush(std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  const bool done =
      changed_.wait_for(lock, timeout, [&] { return failure_ || unacknowledged_ == 0; });
  if (failure_) return fail(*failure_);
  if (!done) {
    return fail(Errc::timed_out, fmt::format("the store at {} has not committed {} epoch(s) yet",
                                             sender_->store_text(), unacknowledged_));
  }
  return {};
}

void EpochShipper::hurry() {
  if (const pid_t thread = lowered_; thread != 0) raise_thread_priority(thread);
}

std::optional<std::chrono::microseconds> EpochShipper::lag() const {
  const std::lock_guard lock(mutex_);
  if (!committed_cut_) return std::nullopt;
  return micros(clock_.monotonic() - *committed_cut_);
}

std::size_t EpochShipper::unacknowledged() const {
  const std::lock_guard lock(mutex_);
  return unacknowledged_;
}

std::optional<Error> EpochShipper::failure() const {
  const std::lock_guard lock(mutex_);
  return failure_;
}

void EpochShipper::set_failure(const Error& error) {
  {
    const std::lock_guard lock(mutex_);
    if (failure_) return;
    failure_ = error;
  }
  changed_.notify_all();
  // Nothing will take what is queued; later pushes are dropped.
  queue_.close_and_clear();
}

void EpochShipper::run() {
  while (auto item = queue_.pop()) {
    if (auto status = encode_and_send(std::move(*item)); !status) {
      // When the link breaks, the store's own word on why may be on its way: it comes first.
      std::unique_lock lock(mutex_);
      changed_.wait_for(lock, std::chrono::milliseconds(200), [&] { return failure_.has_value(); });
      lock.unlock();
      set_failure(status.error());
      return;
    }
  }
}

Status EpochShipper::encode_and_send(Item item) {
  if (auto* begin = std::get_if<Begin>(&item)) {
    if (!begin->machine && lowered_ == 0) {
      lower_thread_priority(options_.encoder_priority);
      lowered_ = ::gettid();
    }
    encoder_.set_acceleration(acceleration_);
    encoder_.begin({begin->epoch, begin->machine != nullptr, begin->machine.get()}, out_);
    return {};
  }
  if (auto* batch = std::get_if<PageBatch>(&item)) {
    encoder_.add(*batch, out_);
    return send_encoded(kSendBytes);
  }
  if (auto* end = std::get_if<EpochEnd>(&item)) {
    const delta::EncodeStats stats = encoder_.end(*end, out_);
    {
      const std::lock_guard lock(mutex_);
      in_flight_.push_back({end->epoch, end->cut_monotonic, end->cut_wall, stats});
    }
    return send_encoded(0);
  }
  // A pass that failed: its records are out already, so the session must end with it.
  encoder_.abandon();
  return fail(Errc::cancelled, "an epoch was abandoned in mid-capture");
}

// Sends what is encoded unless it is less than `keep_below` bytes.
Status EpochShipper::send_encoded(std::size_t keep_below) {
  if (out_.size() <= keep_below) return {};
  VMSHADOW_TRY(sender_->send(out_));
  out_.clear();
  return {};
}

void EpochShipper::on_ack(Epoch epoch, const format::Ack& ack) {
  std::optional<CommittedEpoch> committed;
  {
    const std::lock_guard lock(mutex_);
    if (!in_flight_.empty() && in_flight_.front().epoch == epoch) {
      const InFlight done = in_flight_.front();
      in_flight_.pop_front();
      --unacknowledged_;
      const MonotonicTime now = clock_.monotonic();
      committed = CommittedEpoch{epoch,
                                 done.cut,
                                 done.cut_wall,
                                 micros(now - done.cut),
                                 micros(now - committed_cut_.value_or(done.cut)),
                                 ack.sync,
                                 done.encoded};
      committed_cut_ = done.cut;
    }
  }
  if (committed) {
    on_commit_(*committed);
    changed_.notify_all();
  } else {
    set_failure(Error{Errc::protocol, fmt::format("the store at {} acknowledged epoch {}, which "
                                                  "it was not sent",
                                                  sender_->store_text(), epoch.value)});
  }
}

}  // namespace vmshadow::ship
