#include "store/log_writer.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>

#include "base/assert.h"
#include "store/tier_choice.h"

namespace vmshadow::store {

using format::JournalPosition;

namespace {

/// What one write takes at most: bounds how long a commit waits behind a full pass. Half of it
/// costs a tenth of the throughput of a disk whose cache takes writes faster than it is flushed.
constexpr std::size_t kBatchBytes = std::size_t{8} << 20;
/// Batches under way behind which another one is begun. (Of small ones a disk needs more than two
/// to be busy.)
constexpr std::size_t kUnderWayMax = 3;
/// What is written at most beside one sync. Less, and the disk idles at the end of each; more, and
/// where a sync waits for the writes behind it, commits do.
constexpr std::size_t kBesideSyncBytes = std::size_t{32} << 20;
/// A VM's turn in the queue.
constexpr std::size_t kQuantumBytes = std::size_t{256} << 10;

std::size_t padded(std::size_t bytes) { return bytes + format::alignment_gap(bytes); }

}  // namespace

LogWriter::LogWriter(const OpenSegment::Ground& ground, const LogLimits& limits,
                     OpenSegment::Opening opening)
    : catalog_(ground.catalog),
      clock_(ground.clock),
      limits_(limits),
      segment_(ground, limits, std::move(opening)),
      queue_(kQuantumBytes),
      open_segment_(catalog_.newest().next()) {
  for (std::thread& thread : threads_) thread = std::thread([this] { run(); });
}

LogWriter::~LogWriter() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  work_.notify_all();
  room_.notify_all();
  for (std::thread& thread : threads_) thread.join();
  close_segment();
}

// ---- callers' side

void LogWriter::push(Request request) {
  {
    const std::lock_guard lock(mutex_);
    const VmId vm = request.epoch->head.vm;
    const std::size_t bytes = request.held_bytes = request.log_bytes();
    queue_.push(vm, std::move(request), bytes);
  }
  work_.notify_one();
}

bool LogWriter::has_room(const VmId& vm) const {
  const std::size_t held = queue_.held_bytes(vm);
  return held == 0 || (held < limits_.vm_queue_bytes && queue_.held_bytes() < limits_.queue_bytes);
}

std::size_t LogWriter::queued_bytes() const {
  const std::lock_guard lock(mutex_);
  return queue_.held_bytes();
}

bool LogWriter::poisoned() const {
  const std::lock_guard lock(mutex_);
  return poison_.has_value();
}

Status LogWriter::append(const EpochInLogPtr& epoch, LogPiece piece) {
  {
    std::unique_lock lock(mutex_);
    room_.wait(lock,
               [&] { return stopping_ || poison_ || epoch->failure || has_room(epoch->head.vm); });
    if (epoch->failure) return fail(*epoch->failure);
    if (poison_) return fail(*poison_);
  }
  Request request;
  request.kind = RequestKind::piece;
  request.piece = std::move(piece);
  request.epoch = epoch;
  push(std::move(request));
  return {};
}

Result<LogWriter::Committed> LogWriter::submit_and_wait(Request request) {
  std::future<Result<Committed>> done = request.done.get_future();
  push(std::move(request));
  return done.get();
}

Result<LogWriter::Committed> LogWriter::commit(const EpochInLogPtr& epoch, LogPiece piece,
                                               std::uint64_t chain) {
  Request request;
  request.kind = RequestKind::commit;
  request.piece = std::move(piece);
  request.epoch = epoch;
  request.chain = chain;
  return submit_and_wait(std::move(request));
}

Status LogWriter::grant(const VmId& vm, const std::string& vm_name, Generation generation) {
  Request request;
  request.kind = RequestKind::grant;
  request.epoch = std::make_shared<EpochInLog>();
  request.epoch->head.vm = vm;
  request.epoch->head.generation = generation;
  request.epoch->vm_name = vm_name;
  VMSHADOW_TRY(submit_and_wait(std::move(request)));
  return {};
}

Status LogWriter::note(Note note) {
  std::vector<std::byte> sample;
  note.body(sample, {});
  Request request;
  request.kind = RequestKind::note;
  request.note_bytes = sample.size();
  request.epoch = std::make_shared<EpochInLog>();
  request.epoch->head = note.head;
  request.epoch->vm_name = note.vm_name;
  request.note = std::move(note);
  VMSHADOW_TRY(submit_and_wait(std::move(request)));
  return {};
}

void LogWriter::abandon(const EpochInLogPtr& epoch) {
  const std::lock_guard lock(mutex_);
  epoch->abandoned = true;
  unsettled_.erase(epoch.get());
}

void LogWriter::indexed(const EpochInLogPtr& epoch) {
  const std::lock_guard lock(mutex_);
  unsettled_.erase(epoch.get());
}

SegmentId LogWriter::settled_before() const {
  const std::lock_guard lock(mutex_);
  SegmentId first = open_segment_;
  for (const auto& [epoch, segment] : unsettled_) first = std::min(first, segment);
  return first;
}

// ---- the writing threads

std::size_t LogWriter::Request::log_bytes() const {
  constexpr std::size_t commit_bytes = format::kRecordPrefixBytes + sizeof(format::CommitBytes);
  switch (kind) {
    case RequestKind::piece:
      return piece.bytes.size();
    case RequestKind::commit:
      return piece.bytes.size() + commit_bytes;
    case RequestKind::grant:
      return padded(format::kRecordPrefixBytes + sizeof(format::GrantBytes) +
                    epoch->vm_name.size());
    case RequestKind::note:
      return padded(format::kRecordPrefixBytes + note_bytes);
  }
  return 0;
}

void LogWriter::run() {
  while (true) {
    std::unique_lock writing(writing_);
    let_sync_through();
    Batch batch;
    if (!take(batch)) return;
    if (!batch.empty()) write_batch(std::move(batch), Waiting::no);
    const auto more_is_queued = [&] {
      const std::lock_guard lock(mutex_);
      return !queue_.empty();
    };
    while (!under_way_.empty() &&
           (under_way_.size() > kUnderWayMax || segment_.finishes_at_once() || !more_is_queued())) {
      finish_oldest();
    }
    writing.unlock();
    sync_what_waits();
  }
}

void LogWriter::let_sync_through() {
  const auto much = [&] { return is_syncing_ && beside_sync_bytes_ >= kBesideSyncBytes; };
  {
    const std::lock_guard lock(mutex_);
    if (!much()) return;
  }
  finish_all();  // so that the next sync covers it
  std::unique_lock lock(mutex_);
  synced_.wait(lock, [&] { return !much(); });
}

void LogWriter::sync_what_waits() {
  {
    const std::lock_guard lock(mutex_);
    if (pending_.empty() || std::exchange(has_syncer_, true)) return;
  }
  while (true) {
    // Whoever waits for it hears of an error.
    static_cast<void>(make_durable());
    const std::lock_guard lock(mutex_);
    if (pending_.empty()) {
      has_syncer_ = false;
      return;
    }
  }
}

bool LogWriter::take(Batch& batch) {
  std::unique_lock lock(mutex_);
  if (under_way_.empty()) work_.wait(lock, [&] { return stopping_ || !queue_.empty(); });
  std::size_t bytes = 0;
  while (bytes < kBatchBytes) {
    auto request = queue_.pop();
    if (!request) break;
    bytes += request->log_bytes();
    batch.push_back(std::move(*request));
  }
  if (is_syncing_) beside_sync_bytes_ += bytes;
  return !batch.empty() || !under_way_.empty();
}

void LogWriter::drop_failed(Batch& batch) {
  const auto failed = [&](Request& request) {
    auto failure = failure_of(request);
    if (failure) refuse(request, *failure);
    return failure.has_value();
  };
  batch.erase(std::remove_if(batch.begin(), batch.end(), failed), batch.end());
}

void LogWriter::write_batch(Batch batch, Waiting waiting) {
  while (true) {
    // What has failed, be it in the run before, takes no room: behind a piece that is missing there
    // must be no commit.
    drop_failed(batch);
    if (batch.empty()) return;
    if (const std::size_t count = fitting(batch); count > 0) {
      Batch run;
      for (std::size_t i = 0; i < count; ++i) {
        run.push_back(std::move(batch.front()));
        batch.pop_front();
      }
      waiting == Waiting::yes ? write_run(std::move(run)) : begin_run(std::move(run));
    } else if (!under_way_.empty()) {
      finish_all();  // into the segment that ends here; how it went may change what is to be done
    } else if (auto rolled = roll(batch.front().kind == RequestKind::note); !rolled) {
      for (Request& request : batch) {
        refuse(request, rolled.error().code == Errc::no_space ? no_space(request) : rolled.error());
      }
      return;
    }
  }
}

std::optional<Error> LogWriter::failure_of(const Request& request) {
  const std::lock_guard lock(mutex_);
  if (poison_) return poison_;
  if (request.epoch->failure) return request.epoch->failure;
  if (request.epoch->abandoned) return Error{Errc::cancelled, "the epoch was abandoned"};
  return std::nullopt;
}

std::size_t LogWriter::fitting(const Batch& batch) const {
  if (segment_.file() == nullptr) return 0;
  std::uint64_t bytes = 0;
  std::size_t count = 0;
  for (const Request& request : batch) {
    bytes += request.log_bytes();
    if (!segment_.takes(bytes, count == 0)) break;
    ++count;
  }
  return count;
}

void LogWriter::begin_run(Batch run) {
  if (begin_write(run)) {
    under_way_.push_back(std::move(run));
    return;
  }
  // The disk is full. First what is under way: how that ends may change what is to be done.
  finish_all();
  write_batch(std::move(run), Waiting::yes);
}

void LogWriter::write_run(Batch run) {
  auto written = write_and_wait(run);
  settle(std::move(run), std::move(written));
}

Status LogWriter::write_and_wait(Batch& run) {
  VMSHADOW_TRY(begin_write(run));
  return segment_.finish_write();
}

void LogWriter::settle(Batch run, Status written) {
  // Spare files go before any epoch does.
  if (!written && written.error().code == Errc::no_space && segment_.remove_spares()) {
    written = write_and_wait(run);
  }
  if (written) {
    finish_run(run);
  } else if (written.error().code != Errc::no_space) {
    poison(written.error());
    for (Request& request : run) refuse(request, poison_error());
  } else {
    cut_back();
    // One that asks for too much must not cost the others their commit.
    const bool is_one = run.size() == 1;
    for (Request& request : run) {
      if (auto failure = failure_of(request)) {
        refuse(request, *failure);
      } else if (is_one) {
        refuse(request, no_space(request));
      } else {
        Batch one;
        one.push_back(std::move(request));
        write_run(std::move(one));
      }
    }
  }
}

void LogWriter::finish_all() {
  while (!under_way_.empty()) finish_oldest();
}

void LogWriter::finish_oldest() {
  Batch run = std::move(under_way_.front());
  under_way_.pop_front();
  auto written = segment_.finish_write();
  if (written) return finish_run(run);
  // Whatever became of the others, it lies behind a hole.
  Batch behind;
  for (; !under_way_.empty(); under_way_.pop_front()) {
    static_cast<void>(segment_.finish_write());
    for (Request& request : under_way_.front()) behind.push_back(std::move(request));
  }
  // Once the hole is filled it must not be taken for more than it is.
  if (!behind.empty() && written.error().code == Errc::no_space) {
    if (auto cut = segment_.cut_back(segment_.end()); !cut) written = std::move(cut);
  }
  settle(std::move(run), std::move(written));
  write_batch(std::move(behind), Waiting::yes);
}

Status LogWriter::begin_write(Batch& run) {
  std::vector<ByteSpan> pieces;
  bool for_upkeep = true;
  for (Request& request : run) {
    for_upkeep = for_upkeep && request.kind == RequestKind::note;
    make_trailer(request);
    if (!request.piece.bytes.empty()) pieces.emplace_back(request.piece.bytes);
    if (!request.trailer.empty()) pieces.emplace_back(request.trailer);
  }
  const MonotonicTime now = clock_.monotonic();
  for (Request& request : run) request.started = now;
  return segment_.begin_write(pieces, durable(), for_upkeep);
}

void LogWriter::make_trailer(Request& request) const {
  request.trailer.clear();
  if (!request.wants_sync()) return;
  request.recorded_wall = clock_.wall();
  std::vector<std::byte> body;
  format::RecordHead head = request.epoch->head;
  head.sequence = 0;
  switch (request.kind) {
    case RequestKind::commit:
      head.type = format::RecordType::commit;
      format::append_body(body, format::Commit{request.recorded_wall, request.chain, durable()});
      break;
    case RequestKind::grant:
      head.type = format::RecordType::grant;
      format::append_body(body,
                          format::Grant{request.recorded_wall, request.epoch->vm_name, durable()});
      break;
    case RequestKind::note:
      if (request.note.writing) request.note.writing();
      request.note.body(body, durable());
      VMSHADOW_ASSERT(body.size() == request.note_bytes);
      break;
    case RequestKind::piece:
      break;
  }
  format::append_record(request.trailer, head, body);
  request.trailer.resize(padded(request.trailer.size()));
}

void LogWriter::finish_run(Batch& run) {
  const JournalPosition begin = segment_.tail();
  std::uint64_t offset = begin.offset.value;
  for (Request& request : run) {
    EpochPlaces& places = request.epoch->places;
    for (const LogPiece::Record& record : request.piece.records) {
      const JournalPosition at{begin.segment, SegmentOffset{offset + record.offset}};
      places.add(record.placing, RecordPlace::at(at, record.body_bytes, request.epoch->head.epoch,
                                                 record.placing.pages, record.placing.sealed));
    }
    if (request.kind == RequestKind::commit) places.home = begin.segment;
    segment_.add_to_skeleton(offset, request.piece.bytes);
    segment_.add_to_skeleton(offset + request.piece.bytes.size(), request.trailer);
    offset += request.log_bytes();
  }
  segment_.advance();
  const JournalPosition tail = segment_.tail();
  written_bytes_ += tail.offset.value - begin.offset.value;

  {
    const std::lock_guard lock(mutex_);
    for (Request& request : run) {
      release(request);
      const EpochInLogPtr& epoch = request.epoch;
      if (request.kind == RequestKind::piece || request.kind == RequestKind::commit) {
        ingested_bytes_ += request.piece.bytes.size();
        if (!epoch->abandoned) unsettled_.try_emplace(epoch.get(), tail.segment);
      }
      pieces_.give_back(std::exchange(request.piece, {}));
      if (request.wants_sync()) {
        request.end = tail.offset;
        pending_.push_back(std::move(request));
      } else if (!unsynced_.empty() && unsynced_.back().first == epoch) {
        unsynced_.back().second = tail.offset;
      } else {
        unsynced_.emplace_back(epoch, tail.offset);
      }
    }
    written_ = segment_.end();
  }
  room_.notify_all();
}

/// What it held of the queue. mutex_ is held.
void LogWriter::release(Request& request) {
  const std::size_t bytes = std::exchange(request.held_bytes, 0);
  if (bytes > 0) queue_.release(request.epoch->head.vm, bytes);
}

JournalPosition LogWriter::durable() const {
  const std::lock_guard lock(mutex_);
  return durable_.at;
}

Status LogWriter::make_durable() {
  const std::lock_guard syncing(syncing_);
  std::shared_ptr<io::AppendFile> file;
  OpenSegment::End target;
  {
    std::unique_lock lock(mutex_);
    if (sync_failed_) {
      const Error error = *poison_;
      lock.unlock();
      refuse_pending(error);
      return fail(error);
    }
    // Mere pieces wait for the commit behind them, or for the segment's end.
    if (pending_.empty()) return {};
    file = file_;
    target = written_;
    is_syncing_ = true;
    beside_sync_bytes_ = 0;
  }
  auto synced = file->sync();
  {
    const std::lock_guard lock(mutex_);
    is_syncing_ = false;
  }
  synced_.notify_all();
  if (!synced) {
    poison(synced.error());
    {
      const std::lock_guard lock(mutex_);
      sync_failed_ = true;
    }
    refuse_pending(poison_error());
    return synced;
  }
  answer_durable(target);
  return {};
}

void LogWriter::answer_durable(const OpenSegment::End& target) {
  std::vector<Request> done;
  {
    const std::lock_guard lock(mutex_);
    durable_ = target;
    while (!pending_.empty() && pending_.front().end <= target.at.offset) {
      done.push_back(std::move(pending_.front()));
      pending_.pop_front();
    }
    while (!unsynced_.empty() && unsynced_.front().second <= target.at.offset) {
      unsynced_.pop_front();
    }
  }
  catalog_.set_bytes(target.at.segment, target.at.offset.value, false);
  const MonotonicTime now = clock_.monotonic();
  for (Request& request : done) {
    const auto sync = std::chrono::duration_cast<std::chrono::microseconds>(now - request.started);
    request.done.set_value(
        Committed{{request.epoch->head.epoch, clock_.wall(), sync}, request.recorded_wall});
  }
}

void LogWriter::refuse_pending(const Error& error) {
  std::deque<Request> refused;
  {
    const std::lock_guard lock(mutex_);
    refused.swap(pending_);
  }
  for (Request& request : refused) refuse(request, error);
}

Status LogWriter::seal() {
  // A seal vouches for what is before it.
  VMSHADOW_TRY(make_durable());
  if (durable() != segment_.tail()) {
    VMSHADOW_TRY(segment_.file()->sync());
    answer_durable(segment_.end());
  }
  const JournalPosition before = segment_.tail();
  VMSHADOW_TRY(segment_.seal());
  written_bytes_ += segment_.tail().offset.value - before.offset.value;
  const std::lock_guard lock(mutex_);
  file_.reset();
  open_segment_ = before.segment.next();
  return {};
}

Status LogWriter::roll(bool for_upkeep) {
  if (segment_.file() != nullptr) {
    if (auto sealed = seal(); !sealed) {
      poison(sealed.error());
      return fail(poison_error());
    }
  }
  return make_segment(for_upkeep);
}

Status LogWriter::make_segment(bool for_upkeep) {
  if (catalog_.listed() + 1 >= format::kSegmentEntriesMax) {
    return fail(Errc::unsupported,
                fmt::format("the journal in '{}' takes no more epochs: a store can have {} "
                            "segments; use larger ones",
                            catalog_.directory().path(), format::kSegmentEntriesMax));
  }
  if (auto made = segment_.make(for_upkeep); !made) {
    if (made.error().code == Errc::no_space) return made;
    poison(made.error());
    return fail(poison_error());
  }
  written_bytes_ += segment_.tail().offset.value;
  const std::lock_guard lock(mutex_);
  file_ = segment_.file();
  written_ = durable_ = segment_.end();
  open_segment_ = segment_.tail().segment;
  return {};
}

void LogWriter::cut_back() {
  // Commits that are whole and only wait for their sync keep what they have.
  if (!make_durable()) return;
  const OpenSegment::End end = [&] {
    const std::lock_guard lock(mutex_);
    return durable_;
  }();
  if (auto cut = segment_.cut_back(end); !cut) {
    poison(cut.error());
    return;
  }
  const std::lock_guard lock(mutex_);
  written_ = end;
  for (const auto& [epoch, last] : unsynced_) {
    if (!epoch->failure) epoch->failure = no_space(*epoch);
  }
  unsynced_.clear();
}

void LogWriter::poison(const Error& error) {
  spdlog::error("the journal in '{}' takes no more epochs: {}", catalog_.directory().path(),
                error.message);
  const std::lock_guard lock(mutex_);
  if (poison_) return;
  poison_ = Error{error.code == Errc::no_space ? Errc::io : error.code,
                  fmt::format("the journal in '{}' takes no more epochs until the store is "
                              "restarted, because a write failed: {}",
                              catalog_.directory().path(), error.message)};
}

Error LogWriter::poison_error() {
  const std::lock_guard lock(mutex_);
  VMSHADOW_ASSERT(poison_.has_value());
  return *poison_;
}

void LogWriter::refuse(Request& request, const Error& error) {
  {
    const std::lock_guard lock(mutex_);
    release(request);
    if (!request.epoch->failure) request.epoch->failure = error;
  }
  room_.notify_all();
  if (request.note.refused) request.note.refused();
  if (request.wants_sync()) request.done.set_value(fail(error));
}

Error LogWriter::no_space(const EpochInLog& epoch, RequestKind kind) const {
  std::string what = "a new generation";
  if (kind == RequestKind::piece || kind == RequestKind::commit) {
    what = fmt::format("epoch {}", epoch.head.epoch.value);
  } else if (kind == RequestKind::note) {
    what = epoch.vm_name.empty() ? "what replaces old segments" : "the state";
  }
  if (!epoch.vm_name.empty()) what += fmt::format(" of VM '{}'", epoch.vm_name);
  constexpr double mib = 1 << 20;
  return Error{
      Errc::no_space,
      fmt::format("no space in '{}' ({:.1f} MiB free, {:.1f} MiB kept back for the store's upkeep) "
                  "for {}: free some, give the tier more, or keep epochs for less long",
                  segment_.tier_path(),
                  static_cast<double>(tier_room(catalog_, segment_.tier())) / mib,
                  static_cast<double>(segment_.upkeep_bytes()) / mib, what)};
}

/// With a seal the next start need not read the segment. It is whole without: a failure is no loss.
void LogWriter::close_segment() {
  {
    const std::lock_guard lock(mutex_);
    if (poison_ || segment_.file() == nullptr) return;
  }
  if (const auto sealed = seal(); !sealed) {
    spdlog::info("the journal in '{}' is closed without a seal: {}", segment_.tier_path(),
                 sealed.error().message);
  }
}

}  // namespace vmshadow::store
