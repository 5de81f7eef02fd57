#include "store/log_writer.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "base/assert.h"
#include "io/aligned_buffer.h"
#include "store/tier_choice.h"

namespace vmshadow::store {

using format::JournalPosition;

namespace {

/// What one write takes at most: bounds how long a commit waits behind a full pass.
constexpr std::size_t kBatchBytes = std::size_t{8} << 20;
/// The same if somebody waits for the sync behind it.
constexpr std::size_t kCommitBatchBytes = std::size_t{4} << 20;
/// A VM's turn in the queue.
constexpr std::size_t kQuantumBytes = std::size_t{256} << 10;
/// Space is reserved so much at a time: much less and each commit pays for it, much more and a
/// small disk looks full.
constexpr std::uint64_t kReserveBytes = std::uint64_t{32} << 20;

/// Pieces whose memory is kept for the next ones.
constexpr std::size_t kSparePiecesMax = 32;

std::size_t padded(std::size_t bytes) { return bytes + format::alignment_gap(bytes); }

}  // namespace

void LogPiece::add(ByteSpan record, Placing placing) {
  if (placing.list != PlaceList::none) {
    records.push_back({static_cast<std::uint32_t>(bytes.size()),
                       static_cast<std::uint32_t>(record.size() - format::kRecordPrefixBytes),
                       placing});
  }
  format::append_bytes(bytes, record);
  bytes.resize(padded(bytes.size()));
}

LogWriter::LogWriter(SegmentCatalog& catalog, io::FileSystem& files, const Clock& clock,
                     LogLimits limits, Opening opening)
    : catalog_(catalog),
      files_(files),
      clock_(clock),
      limits_(limits),
      opening_(std::move(opening)),
      queue_(kQuantumBytes),
      open_segment_(catalog.newest().next()) {
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
    const std::size_t bytes = request.log_bytes();
    queue_.push(vm, std::move(request), bytes);
  }
  work_.notify_one();
}

bool LogWriter::has_room(const VmId& vm) const {
  const std::size_t held = queue_.held_bytes(vm);
  return held == 0 || (held < limits_.vm_queue_bytes && queue_.held_bytes() < limits_.queue_bytes);
}

LogPiece LogWriter::new_piece(std::size_t bytes) {
  LogPiece piece;
  {
    const std::lock_guard lock(spare_mutex_);
    if (!spare_.empty()) {
      piece = std::move(spare_.back());
      spare_.pop_back();
    }
  }
  piece.bytes.reserve(bytes);
  return piece;
}

void LogWriter::keep_memory(LogPiece piece) {
  piece.bytes.clear();
  piece.records.clear();
  const std::lock_guard lock(spare_mutex_);
  if (piece.bytes.capacity() > 0 && spare_.size() < kSparePiecesMax) {
    spare_.push_back(std::move(piece));
  }
}

std::size_t LogWriter::queued_bytes() const {
  const std::lock_guard lock(mutex_);
  return queue_.held_bytes();
}

std::size_t LogWriter::spare_bytes() const {
  const std::lock_guard lock(spare_mutex_);
  std::size_t bytes = 0;
  for (const LogPiece& piece : spare_) bytes += piece.bytes.capacity();
  return bytes;
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
    Batch batch;
    if (!take(batch)) return;
    std::vector<std::pair<VmId, std::size_t>> held;
    for (const Request& request : batch) {
      held.emplace_back(request.epoch->head.vm, request.log_bytes());
    }
    write_batch(batch);
    batch.clear();
    {
      const std::lock_guard lock(mutex_);
      for (const auto& [vm, bytes] : held) queue_.release(vm, bytes);
    }
    room_.notify_all();
    writing.unlock();
    // Whoever waits for it hears of an error.
    static_cast<void>(make_durable());
  }
}

bool LogWriter::take(Batch& batch) {
  std::unique_lock lock(mutex_);
  work_.wait(lock, [&] { return stopping_ || !queue_.empty(); });
  std::size_t bytes = 0;
  bool has_commit = false;
  while (bytes < (has_commit ? kCommitBatchBytes : kBatchBytes)) {
    auto request = queue_.pop();
    if (!request) break;
    bytes += request->log_bytes();
    has_commit = has_commit || request->wants_sync();
    batch.push_back(std::move(*request));
  }
  return !batch.empty();
}

void LogWriter::write_batch(Batch& batch) {
  std::size_t first = 0;
  while (first < batch.size()) {
    // What has failed, be it in the run before, or is not wanted any more takes no room: behind a
    // piece that is missing there must be no commit.
    const auto rest = batch.begin() + static_cast<std::ptrdiff_t>(first);
    batch.erase(std::remove_if(rest, batch.end(),
                               [&](Request& request) {
                                 auto failure = failure_of(request);
                                 if (failure) refuse(request, *failure);
                                 return failure.has_value();
                               }),
                batch.end());
    if (first == batch.size()) break;
    const std::size_t count = fitting(batch, first);
    if (count > 0) {
      write_run(batch, first, count);
      first += count;
    } else if (auto rolled = roll(batch[first].kind == RequestKind::note); !rolled) {
      for (; first < batch.size(); ++first) {
        refuse(batch[first],
               rolled.error().code == Errc::no_space ? no_space(batch[first]) : rolled.error());
      }
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

std::size_t LogWriter::fitting(const Batch& batch, std::size_t first) const {
  if (file_ == nullptr) return 0;
  std::uint64_t end = tail_.offset.value;
  std::size_t count = 0;
  while (first + count < batch.size()) {
    end += batch[first + count].log_bytes();
    // A fresh segment takes one request of any size: they are bounded, segments need not be large.
    const bool alone = count == 0 && tail_.offset.value == opening_end_;
    if (end + format::pad_bytes(end, io::kDirectBlockBytes) > limits_.segment_bytes && !alone)
      break;
    ++count;
  }
  return count;
}

/// Writes requests that fit the segment; every one is answered or, a mere piece, in the log.
void LogWriter::write_run(Batch& batch, std::size_t first, std::size_t count) {
  const auto written = try_run(batch, first, count);
  if (written) {
    finish_run(batch, first, count);
  } else if (written.error().code != Errc::no_space) {
    poison(written.error());
    for (std::size_t i = first; i < first + count; ++i) refuse(batch[i], poison_error());
  } else {
    cut_back();
    // One that asks for too much must not cost the others their commit.
    for (std::size_t i = first; i < first + count; ++i) {
      if (auto failure = failure_of(batch[i])) {
        refuse(batch[i], *failure);
      } else if (count == 1) {
        refuse(batch[i], no_space(batch[i]));
      } else {
        write_run(batch, i, 1);
      }
    }
  }
}

Status LogWriter::try_run(Batch& batch, std::size_t first, std::size_t count) {
  std::vector<ByteSpan> pieces;
  std::uint64_t end = tail_.offset.value;
  bool for_upkeep = true;
  for (std::size_t i = first; i < first + count; ++i) {
    Request& request = batch[i];
    for_upkeep = for_upkeep && request.kind == RequestKind::note;
    make_trailer(request);
    if (!request.piece.bytes.empty()) pieces.emplace_back(request.piece.bytes);
    if (!request.trailer.empty()) pieces.emplace_back(request.trailer);
    end += request.log_bytes();
  }
  make_pad(end);
  if (!pad_.empty()) pieces.emplace_back(pad_);
  end += pad_.size();
  run_end_ = end;
  VMSHADOW_TRY(reserve(end, for_upkeep));
  const MonotonicTime now = clock_.monotonic();
  for (std::size_t i = first; i < first + count; ++i) batch[i].started = now;
  return file_->write(pieces, tail_.offset.value, io::Durability::buffered);
}

void LogWriter::make_pad(std::uint64_t offset) {
  pad_.clear();
  format::append_pad(pad_, offset, io::kDirectBlockBytes, durable());
}

std::uint64_t LogWriter::upkeep_bytes() const {
  return std::min(limits_.reserve_bytes, tier_size(catalog_, tier_) / 8);
}

/// Without it, each sync would bring the file system's own journal to the disk as well.
Status LogWriter::reserve(std::uint64_t end, bool for_upkeep) {
  if (end <= reserved_end_) return {};
  const std::uint64_t from = std::max(reserved_end_, tail_.offset.value);
  const std::uint64_t whole = io::round_up_to_block(std::max(limits_.segment_bytes, end));
  std::uint64_t wanted = std::min(whole, end + kReserveBytes);
  const std::uint64_t room = tier_room(catalog_, tier_);
  const std::uint64_t upkeep = upkeep_bytes();
  if (!for_upkeep && room < upkeep + (end - from)) {
    return fail(Errc::no_space, "what is left is for the store's upkeep");
  }
  if (room < upkeep + (wanted - from)) wanted = end;
  reserved_end_ = wanted;
  if (const auto reserved = file_->preallocate(reserved_end_); !reserved) {
    spdlog::debug("the journal in '{}' is written without space reserved in advance: {}",
                  tier_path(), reserved.error().message);
  }
  return {};
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

void LogWriter::finish_run(Batch& batch, std::size_t first, std::size_t count) {
  written_bytes_ += run_end_ - tail_.offset.value;
  for (std::size_t i = first; i < first + count; ++i) {
    Request& request = batch[i];
    EpochPlaces& places = request.epoch->places;
    for (const LogPiece::Record& record : request.piece.records) {
      const JournalPosition at{tail_.segment, SegmentOffset{tail_.offset.value + record.offset}};
      places.add(record.placing, RecordPlace::at(at, record.body_bytes, request.epoch->head.epoch,
                                                 record.placing.pages, record.placing.sealed));
    }
    if (request.kind == RequestKind::commit) places.home = tail_.segment;
    add_to_skeleton(tail_.offset.value, request.piece.bytes);
    add_to_skeleton(tail_.offset.value + request.piece.bytes.size(), request.trailer);
    tail_.offset = SegmentOffset{tail_.offset.value + request.log_bytes()};
  }
  tail_.offset = SegmentOffset{run_end_};

  const std::lock_guard lock(mutex_);
  for (std::size_t i = first; i < first + count; ++i) {
    Request& request = batch[i];
    const EpochInLogPtr& epoch = request.epoch;
    if (request.kind == RequestKind::piece || request.kind == RequestKind::commit) {
      ingested_bytes_ += request.piece.bytes.size();
      if (!epoch->abandoned) unsettled_.try_emplace(epoch.get(), tail_.segment);
    }
    keep_memory(std::exchange(request.piece, {}));
    if (request.wants_sync()) {
      request.end = tail_.offset;
      pending_.push_back(std::move(request));
    } else if (!unsynced_.empty() && unsynced_.back().first == epoch) {
      unsynced_.back().second = tail_.offset;
    } else {
      unsynced_.emplace_back(epoch, tail_.offset);
    }
  }
  written_ = {tail_, skeleton_.mark()};
}

JournalPosition LogWriter::durable() const {
  const std::lock_guard lock(mutex_);
  return durable_.end;
}

Status LogWriter::make_durable() {
  const std::lock_guard syncing(syncing_);
  std::shared_ptr<io::AppendFile> file;
  Written target;
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
  }
  if (auto synced = file->sync(); !synced) {
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

void LogWriter::answer_durable(const Written& target) {
  std::vector<Request> done;
  {
    const std::lock_guard lock(mutex_);
    durable_ = target;
    while (!pending_.empty() && pending_.front().end <= target.end.offset) {
      done.push_back(std::move(pending_.front()));
      pending_.pop_front();
    }
    while (!unsynced_.empty() && unsynced_.front().second <= target.end.offset) {
      unsynced_.pop_front();
    }
  }
  catalog_.set_bytes(target.end.segment, target.end.offset.value, false);
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

void LogWriter::add_to_skeleton(std::uint64_t offset, ByteSpan records) {
  while (!records.empty()) {
    format::RecordPrefixBytes prefix;
    std::memcpy(&prefix, records.data(), sizeof prefix);
    const std::size_t bytes = format::kRecordPrefixBytes + prefix.body_bytes.get();
    skeleton_.add(offset, records.first(bytes));
    offset += padded(bytes);
    records = records.subspan(padded(bytes));
  }
}

Status LogWriter::seal() {
  // A seal vouches for what is before it.
  VMSHADOW_TRY(make_durable());
  if (durable() != tail_) {
    VMSHADOW_TRY(file_->sync());
    answer_durable({tail_, skeleton_.mark()});
  }
  const std::uint64_t end = tail_.offset.value;
  const std::vector<std::byte> bytes =
      format::encode_segment_end(tail_.segment, end, skeleton_, tail_);
  const ByteSpan piece = bytes;
  auto written = file_->write({&piece, 1}, end, io::Durability::buffered);
  std::uint64_t sealed_end = end + bytes.size();
  if (!written && written.error().code != Errc::no_space) return written;
  if (!written) sealed_end = end;  // the segment is whole without: it takes longer to read
  // Recovery takes every journal segment but the last for durable.
  VMSHADOW_TRY(file_->truncate(sealed_end));
  catalog_.set_bytes(tail_.segment, sealed_end, written.has_value());
  written_bytes_ += sealed_end - end;
  const std::lock_guard lock(mutex_);
  file_.reset();
  open_segment_ = tail_.segment.next();
  return {};
}

Status LogWriter::roll(bool for_upkeep) {
  if (file_ != nullptr) {
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
  VMSHADOW_ASSIGN(tier_, choose_tier(catalog_, TierKind::ssd, limits_.room_bytes_min));
  if (!for_upkeep && tier_room(catalog_, tier_) < upkeep_bytes() + limits_.room_bytes_min) {
    return fail(Errc::no_space, "what is left is for the store's upkeep");
  }
  const StoreDirectory& directory = catalog_.directory();
  const SegmentId id = catalog_.allocate();
  const std::string path = directory.segment_path(tier_, id);
  const std::vector<std::byte> head = format::encode_segment_head(
      {directory.id(), id, clock_.wall(), format::SegmentKind::journal});
  const std::vector<std::byte> opening = opening_(id);
  const std::uint64_t end = head.size() + opening.size();
  {
    const std::lock_guard lock(mutex_);
    durable_.end = {id, SegmentOffset{0}};  // nothing in it is yet
  }
  make_pad(end);
  const std::array<ByteSpan, 3> pieces = {head, opening, pad_};
  const auto create = [&]() -> Result<std::unique_ptr<io::AppendFile>> {
    VMSHADOW_ASSIGN(auto file, files_.create(path));
    VMSHADOW_TRY(file->write(pieces, 0, io::Durability::durable));
    VMSHADOW_TRY(files_.sync_directory(directory.segments_path(tier_)));
    return file;
  };
  auto made = create();
  if (made) {
    reserved_end_ = 0;
    opening_end_ = end + pad_.size();
    tail_ = {id, SegmentOffset{opening_end_}};
    skeleton_ = {};
    add_to_skeleton(format::kSegmentHeadBytes, opening);
    catalog_.add(id, {format::SegmentKind::journal, tier_, tail_.offset.value, false, true, 0});
    written_bytes_ += tail_.offset.value;
    const std::lock_guard lock(mutex_);
    file_ = std::move(*made);
    written_ = durable_ = {tail_, skeleton_.mark()};
    open_segment_ = id;
    return {};
  }
  if (made.error().code == Errc::no_space) {
    const auto removed = files_.remove(path);
    if (removed || removed.error().code == Errc::not_found) {
      if (files_.sync_directory(directory.segments_path(tier_))) return fail(made.error());
    }
  }
  poison(made.error());
  return fail(poison_error());
}

void LogWriter::cut_back() {
  // Commits that are whole and only wait for their sync keep what they have.
  if (!make_durable()) return;
  const Written end = [&] {
    const std::lock_guard lock(mutex_);
    return durable_;
  }();
  VMSHADOW_ASSERT(end.end.segment == tail_.segment);
  if (auto cut = file_->truncate(end.end.offset.value); !cut) {
    poison(cut.error());
    return;
  }
  tail_ = end.end;
  skeleton_.rewind(end.skeleton);
  reserved_end_ = 0;
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
                  tier_path(), static_cast<double>(tier_room(catalog_, tier_)) / mib,
                  static_cast<double>(upkeep_bytes()) / mib, what)};
}

/// With a seal the next start need not read the segment. It is whole without: a failure is no loss.
void LogWriter::close_segment() {
  {
    const std::lock_guard lock(mutex_);
    if (poison_ || file_ == nullptr) return;
  }
  if (const auto sealed = seal(); !sealed) {
    spdlog::info("the journal in '{}' is closed without a seal: {}", tier_path(),
                 sealed.error().message);
  }
}

}  // namespace vmshadow::store
