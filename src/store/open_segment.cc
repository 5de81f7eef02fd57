#include "store/open_segment.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sys/random.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/assert.h"
#include "io/aligned_buffer.h"
#include "store/tier_choice.h"

namespace vmshadow::store {

using format::JournalPosition;

namespace {

/// Space is reserved so much at a time: much less and each commit pays for it, much more and a
/// small disk looks full.
constexpr std::uint64_t kReserveBytes = std::uint64_t{32} << 20;

Result<format::SegmentSalt> draw_salt() {
  format::SegmentSalt salt;
  if (::getrandom(salt.data(), salt.size(), 0) != static_cast<ssize_t>(salt.size())) {
    return fail_errno(errno, "drawing a segment's salt");
  }
  return salt;
}

}  // namespace

OpenSegment::OpenSegment(const Ground& ground, const LogLimits& limits, Opening opening)
    : ground_(ground), limits_(limits), opening_(std::move(opening)) {}

bool OpenSegment::takes(std::uint64_t bytes, bool is_one) const {
  const std::uint64_t end = begun_end() + bytes;
  return (is_one && begun_end() == opening_end_) ||
         end + format::mark_bytes(end, io::kDirectBlockBytes) <= limits_.segment_bytes;
}

std::uint64_t OpenSegment::upkeep_bytes() const {
  return std::min(limits_.reserve_bytes, tier_size(ground_.catalog, tier_) / 8);
}

Status OpenSegment::choose_tier(bool for_upkeep) {
  const SegmentCatalog& catalog = ground_.catalog;
  const std::uint64_t bytes = limits_.room_bytes_min;
  const auto lacks = [&] {
    return tier_room(catalog, tier_) < bytes + (for_upkeep ? 0 : upkeep_bytes());
  };
  // Spare files go before the segment is begun on a slow disk, or not at all.
  if (const auto tier = choose_tier_of(catalog, TierKind::ssd, bytes)) {
    tier_ = *tier;
  } else {
    VMSHADOW_ASSIGN(tier_, store::choose_tier(catalog, TierKind::ssd, bytes, SpareFiles::go));
  }
  if (!lacks() || (remove_spares() && !lacks())) return {};
  VMSHADOW_ASSIGN(tier_, store::choose_tier(catalog, TierKind::ssd, bytes));
  if (lacks()) return fail(Errc::no_space, "what is left is for the store's upkeep");
  return {};
}

Status OpenSegment::make(bool for_upkeep) {
  VMSHADOW_ASSERT(file_ == nullptr);
  VMSHADOW_TRY(choose_tier(for_upkeep));
  const StoreDirectory& directory = ground_.catalog.directory();
  VMSHADOW_ASSIGN(salt_, draw_salt());
  const SegmentId id = ground_.catalog.allocate();
  const std::vector<std::byte> head = format::encode_segment_head(
      {directory.id(), id, ground_.clock.wall(), format::SegmentKind::journal, salt_});
  const std::vector<std::byte> opening = opening_(id);
  tail_ = {id, SegmentOffset{head.size()}};
  // Nothing in it is durable yet.
  const std::uint64_t opening_end = head.size() + opening.size();
  const std::vector<std::byte> mark = make_mark(
      head.size(), opening_end, format::chain_records(0, opening), {id, SegmentOffset{0}});
  const std::array<ByteSpan, 3> pieces = {head, opening, mark};
  auto written = make_file(id, pieces);
  if (!written && written.error().code == Errc::no_space && remove_spares()) {
    written = make_file(id, pieces);
  }
  VMSHADOW_ASSIGN(Made made, std::move(written));

  file_ = std::move(made.file);
  reserved_end_ = made.file_bytes;
  opening_end_ = written_end_ = opening_end + mark.size();
  skeleton_ = {};
  add_to_skeleton(format::kSegmentHeadBytes, opening);
  advance();
  SegmentFacts facts{format::SegmentKind::journal, tier_, tail_.offset.value, false, true, 0};
  facts.file_bytes = made.file_bytes;
  ground_.catalog.add(id, facts);
  return {};
}

Result<OpenSegment::Made> OpenSegment::make_file(SegmentId id, std::span<const ByteSpan> pieces) {
  const StoreDirectory& directory = ground_.catalog.directory();
  const std::string path = directory.segment_path(tier_, id);
  std::string begun = directory.spare_path(tier_, id);
  Made made;
  const auto make = [&]() -> Status {
    const auto spare = ground_.spares.take(tier_);
    if (spare) {
      begun = directory.spare_path(tier_, spare->id);
      made.file_bytes = spare->bytes;
    }
    {
      VMSHADOW_ASSIGN(const auto file,
                      spare ? ground_.files.open(begun) : ground_.files.create(begun));
      VMSHADOW_TRY(file->write(pieces, 0, io::Durability::durable));
    }
    VMSHADOW_TRY(ground_.files.rename(begun, path));
    // By its new name: that is what errors then name.
    VMSHADOW_ASSIGN(made.file, ground_.files.open(path));
    return ground_.files.sync_directory(directory.segments_path(tier_));
  };
  auto done = make();
  if (done) return made;
  if (done.error().code != Errc::no_space) return fail(std::move(done).error());
  for (const std::string& left : {begun, path}) {
    const auto removed = ground_.files.remove(left);
    if (!removed && removed.error().code != Errc::not_found) {
      return fail(Errc::io, removed.error().message);
    }
  }
  if (const auto gone = ground_.files.sync_directory(directory.segments_path(tier_)); !gone) {
    return fail(Errc::io, gone.error().message);
  }
  return fail(std::move(done).error());
}

std::vector<std::byte> OpenSegment::make_mark(std::uint64_t begin, std::uint64_t end,
                                              std::uint64_t chain,
                                              const JournalPosition& durable) const {
  std::vector<std::byte> mark;
  format::append_mark(mark, end, io::kDirectBlockBytes,
                      format::Mark{{tail_.segment, SegmentOffset{begin}}, salt_, chain, durable});
  return mark;
}

Status OpenSegment::begin_write(std::span<const ByteSpan> records, const JournalPosition& durable,
                                bool for_upkeep) {
  std::vector<ByteSpan> pieces(records.begin(), records.end());
  const std::uint64_t begin = begun_end();
  std::uint64_t end = begin;
  std::uint64_t chain = 0;
  for (const ByteSpan piece : records) {
    chain = format::chain_records(chain, piece);
    end += piece.size();
  }
  std::vector<std::byte> mark = make_mark(begin, end, chain, durable);
  pieces.emplace_back(mark);
  end += mark.size();
  VMSHADOW_TRY(reserve(begin, end, for_upkeep));
  file_->begin_write(pieces, begin);
  begun_.push_back({end, std::move(mark)});
  return {};
}

Status OpenSegment::finish_write() {
  VMSHADOW_ASSERT(!begun_.empty());
  auto written = file_->finish_write();
  written_end_ = begun_.front().end;
  begun_.pop_front();
  return written;
}

/// Without it, each sync would bring the file system's own journal to the disk as well.
Status OpenSegment::reserve(std::uint64_t begin, std::uint64_t end, bool for_upkeep) {
  if (end <= reserved_end_) return {};
  const std::uint64_t from = std::max(reserved_end_, begin);
  const std::uint64_t whole = io::round_up_to_block(std::max(limits_.segment_bytes, end));
  std::uint64_t wanted = std::min(whole, end + kReserveBytes);
  const std::uint64_t upkeep = upkeep_bytes();
  const auto lacks = [&](std::uint64_t up_to) {
    return tier_room(ground_.catalog, tier_) < upkeep + (up_to - from);
  };
  if (lacks(wanted)) {
    remove_spares();
    if (!for_upkeep && lacks(end)) {
      return fail(Errc::no_space, "what is left is for the store's upkeep");
    }
    if (lacks(wanted)) wanted = end;
  }
  reserved_end_ = wanted;
  if (const auto reserved = file_->preallocate(reserved_end_); !reserved) {
    spdlog::debug("the journal in '{}' is written without space reserved in advance: {}",
                  tier_path(), reserved.error().message);
  }
  return {};
}

void OpenSegment::add_to_skeleton(std::uint64_t offset, ByteSpan records) {
  while (!records.empty()) {
    format::RecordPrefixBytes prefix;
    std::memcpy(&prefix, records.data(), sizeof prefix);
    const std::size_t bytes = format::kRecordPrefixBytes + prefix.body_bytes.get();
    skeleton_.add(offset, records.first(bytes));
    const std::size_t padded = bytes + format::alignment_gap(bytes);
    offset += padded;
    records = records.subspan(padded);
  }
}

void OpenSegment::advance() { tail_.offset = SegmentOffset{written_end_}; }

Status OpenSegment::cut_back(const End& end) {
  VMSHADOW_ASSERT(end.at.segment == tail_.segment && begun_.empty());
  VMSHADOW_TRY(file_->truncate(end.at.offset.value));
  ground_.catalog.set_file_bytes(tail_.segment, 0);
  tail_ = end.at;
  skeleton_.rewind(end.skeleton);
  reserved_end_ = 0;
  return {};
}

Status OpenSegment::seal() {
  VMSHADOW_ASSERT(begun_.empty());
  const std::uint64_t end = tail_.offset.value;
  const std::vector<std::byte> bytes =
      format::encode_segment_end(tail_.segment, end, skeleton_, tail_, salt_);
  const ByteSpan piece = bytes;
  auto written = file_->write({&piece, 1}, end, io::Durability::buffered);
  std::uint64_t sealed_end = end + bytes.size();
  if (!written && written.error().code != Errc::no_space) return written;
  if (!written) sealed_end = end;  // the segment is whole without: it takes longer to read
  // Recovery takes every journal segment but the last for durable, and all of it for its own. Of a
  // recycled file little is lost by that: what a segment's skeleton takes, another's does too.
  VMSHADOW_TRY(file_->truncate(sealed_end));
  ground_.catalog.set_bytes(tail_.segment, sealed_end, written.has_value());
  ground_.catalog.set_file_bytes(tail_.segment, 0);
  tail_.offset = SegmentOffset{sealed_end};
  file_.reset();
  return {};
}

}  // namespace vmshadow::store
