#include "store/session.h"

#include <fmt/format.h>

#include <utility>

#include "base/assert.h"

namespace vmshadow::store {

using format::RecordType;

namespace {
/// A piece is over its size by its last record, most of which are smaller than this.
constexpr std::size_t kPieceSlackBytes = std::size_t{128} << 10;
}  // namespace

Session::Session(Ground ground, std::string vm_name, Generation generation, Epoch next_epoch)
    : ground_(std::move(ground)),
      vm_name_(std::move(vm_name)),
      vm_(vm_id(vm_name_)),
      generation_(generation),
      next_epoch_(next_epoch),
      label_(generation) {}

Session::~Session() {
  abandon();
  ground_.closed();
}

std::string Session::epoch_text() const {
  return fmt::format("epoch {} of VM '{}'", next_epoch_.value, vm_name_);
}

Result<std::unique_ptr<EpochImage>> Session::base() const {
  if (next_epoch_ == Epoch{0}) {
    return fail(Errc::not_found, fmt::format("no epoch of VM '{}' was committed yet", vm_name_));
  }
  const Epoch newest{next_epoch_.value - 1};
  VMSHADOW_ASSIGN(const auto chain, ground_.index.chain(vm_name_, newest));
  const auto key = ground_.keys ? std::optional(ground_.keys->front().id()) : std::nullopt;
  for (const EpochIndexPtr& part : chain) {
    if (part->key_id == key) continue;
    return fail(Errc::unsupported,
                fmt::format("epoch {} of VM '{}' is not encrypted as its next ones shall be",
                            part->info.epoch.value, vm_name_));
  }
  return ground_.reader.open(vm_name_, newest);
}

void Session::may_build_on_base() {
  VMSHADOW_ASSERT(!open_ && machine_ == nullptr);
  if (const auto image = base()) {
    base_.emplace(Base{(*image)->info().generation,
                       std::make_shared<const MachineDescription>((*image)->machine())});
  }
}

void Session::choose_label(ByteSpan record) {
  const std::optional<Base> base = std::exchange(base_, std::nullopt);
  if (!base || record.size() < format::kRecordPrefixBytes) return;
  const auto prefix = format::decode_prefix(record);
  if (!prefix || prefix->head.generation != base->generation) return;
  label_ = base->generation;
  machine_ = base->machine;
}

void Session::open_epoch() {
  open_.emplace(machine_);
  if (ground_.keys != nullptr) open_->sealer.emplace(ground_.keys);
  open_->in_log = std::make_shared<EpochInLog>();
  open_->in_log->head = {RecordType::commit, 0, vm_, label_, next_epoch_};
  open_->in_log->vm_name = vm_name_;
}

Result<format::RecordPrefix> Session::check_record(ByteSpan record) const {
  if (record.size() < format::kRecordPrefixBytes) {
    return fail(Errc::protocol, "a record is shorter than its prefix");
  }
  VMSHADOW_ASSIGN(const format::RecordPrefix prefix, format::decode_prefix(record));
  VMSHADOW_TRY(format::check_body(prefix, record.subspan(format::kRecordPrefixBytes)));
  if (prefix.head.vm != vm_) return fail(Errc::protocol, "a record is another VM's");
  if (prefix.head.generation != label_) {
    const bool stale = prefix.head.generation < label_;
    return fail(stale ? Errc::stale_generation : Errc::protocol,
                fmt::format("a record is of generation {}, the session's are of {}",
                            prefix.head.generation.value, label_.value));
  }
  if (prefix.head.epoch != next_epoch_) {
    return fail(Errc::protocol, fmt::format("a record is of epoch {}, but epoch {} is next",
                                            prefix.head.epoch.value, next_epoch_.value));
  }
  return prefix;
}

Status Session::take(ByteSpan record) {
  VMSHADOW_ASSIGN(const format::RecordPrefix prefix, check_record(record));
  if (machine_ == nullptr && prefix.head.sequence == 0 && prefix.head.type != RecordType::machine) {
    return fail(Errc::protocol,
                "the first epoch of a generation must be full, but it does not start with a "
                "machine record");
  }
  const ByteSpan body = record.subspan(format::kRecordPrefixBytes);
  if (prefix.head.type == RecordType::page_group) {
    VMSHADOW_ASSIGN(const format::PageGroup group, format::decode_page_group(body));
    if (group.codec == format::Codec::lost) {
      return fail(Errc::protocol, "a page_group without its pages: only a store makes such");
    }
  }
  if (format::is_sealed(prefix.head.type)) {
    return fail(Errc::protocol, "an encrypted record: only a store makes such");
  }
  VMSHADOW_ASSIGN(Placing placing, open_->tally.add(prefix, body));
  if (open_->sealer) {
    VMSHADOW_ASSIGN(record, open_->sealer->add(prefix, record));
    placing.sealed = format::is_sealable(prefix.head.type);
  }
  if (open_->piece.bytes.capacity() == 0) {
    open_->piece = ground_.log.new_piece(ground_.piece_bytes + kPieceSlackBytes);
  }
  open_->piece.add(record, placing);
  if (open_->piece.bytes.size() < ground_.piece_bytes) return {};
  return ground_.log.append(open_->in_log, std::exchange(open_->piece, LogPiece{}));
}

Status Session::append(ByteSpan record) {
  if (!open_) {
    choose_label(record);
    open_epoch();
  }
  if (!open_->failure) {
    if (auto taken = take(record); !taken) {
      open_->failure = std::move(taken).error().with_context(epoch_text());
    }
  }
  if (open_->failure) return fail(*open_->failure);
  return {};
}

Result<CommitReceipt> Session::commit(ByteSpan end_record) {
  if (!open_) open_epoch();
  const MonotonicTime asked = ground_.clock.monotonic();
  auto receipt = open_->failure ? Result<CommitReceipt>(fail(*open_->failure)) : finish(end_record);
  if (receipt) {
    ground_.commits.took.add(
        std::chrono::duration_cast<DurationBuckets::Duration>(ground_.clock.monotonic() - asked));
  } else {
    ++ground_.commits.refused;
    abandon();
  }
  open_.reset();
  return receipt;
}

Result<CommitReceipt> Session::finish(ByteSpan end_record) {
  const auto refused = [&](Error error) {
    return fail(std::move(error).with_context(epoch_text()));
  };
  const auto prefix = check_record(end_record);
  if (!prefix) return refused(prefix.error());
  if (prefix->head.type != RecordType::epoch_end) {
    return refused({Errc::protocol, "it is not ended by an epoch_end record"});
  }
  const auto summary = format::decode_epoch_end(end_record.subspan(format::kRecordPrefixBytes));
  if (!summary) return refused(summary.error());
  EpochTally& tally = open_->tally;
  if (auto sound = tally.check(*prefix, *summary); !sound) return refused(sound.error());
  if (machine_ == nullptr && !tally.full()) {
    return refused({Errc::protocol, "the first epoch of a generation must be full"});
  }

  PageTable pages = tally.take_pages();
  if (tally.full() && pages.page_count() != tally.machine()->total_pages()) {
    return refused(
        {Errc::protocol, fmt::format("a full epoch must hold every page, but it holds {} of {}",
                                     pages.page_count(), tally.machine()->total_pages())});
  }
  const std::optional<EpochSealer>& sealer = open_->sealer;
  open_->piece.add(sealer ? open_->sealer->end(*prefix, *summary) : end_record, {});
  auto committed = ground_.log.commit(open_->in_log, std::move(open_->piece),
                                      sealer ? sealer->chain() : tally.chain());
  if (!committed) return refused(std::move(committed).error());
  add_to_index(*summary, std::move(pages), committed->recorded_wall);
  ground_.log.indexed(open_->in_log);
  next_epoch_ = next_epoch_.next();
  return committed->receipt;
}

void Session::add_to_index(const format::EpochSummary& summary, PageTable pages,
                           WallTime committed) {
  const EpochTally& tally = open_->tally;
  auto epoch = std::make_shared<EpochIndex>();
  epoch->info = make_epoch_info(next_epoch_, label_, tally, &summary, committed);
  epoch->machine = machine_ = tally.machine();
  if (open_->sealer) {
    // The index knows what it would know after a restart, without the key.
    epoch->machine = nullptr;
    epoch->key_id = open_->sealer->key_id();
    epoch->info.stored_bytes += open_->sealer->record_bytes() - tally.record_bytes();
  }
  epoch->pages = std::move(pages);
  epoch->places = std::move(open_->in_log->places);
  epoch->places.groups.shrink_to_fit();
  // What is not full adds to the epoch before: the first of a session is full, or adds to the base.
  if (!epoch->info.full) epoch->previous = Epoch{next_epoch_.value - 1};
  set_uses(*epoch);
  ground_.index.add_epoch(vm_, std::move(epoch));
}

void Session::abandon() {
  if (!open_) return;
  ground_.log.abandon(open_->in_log);
  open_.reset();
}

}  // namespace vmshadow::store
