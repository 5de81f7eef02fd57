#include "store/segment_scanner.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "base/assert.h"
#include "format/journal.h"
#include "format/skeleton.h"
#include "io/file.h"

namespace vmshadow::store {

using format::RecordType;

namespace {

constexpr std::size_t kWindowBytes = std::size_t{4} << 20;
static_assert(kWindowBytes >
              format::kRecordPrefixBytes + format::kRecordBodyBytesMax + format::kRecordAlignment);
constexpr std::size_t kZeroWindowBytes = std::size_t{64} << 10;
/// What a failing disk loses at a time.
constexpr std::size_t kUnreadableBytes = 4096;

constexpr std::uint64_t align(std::uint64_t offset) {
  return offset + format::alignment_gap(offset);
}

bool is_zero(ByteSpan bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{}; });
}

bool belongs_in_journal(RecordType type) {
  return format::is_epoch_record(type) || static_cast<std::uint16_t>(type) >= 0x200;
}

}  // namespace

std::size_t MemorySource::read_at(std::uint64_t offset, MutableByteSpan into) const {
  if (offset >= bytes_.size()) return 0;
  const std::size_t count = std::min<std::size_t>(into.size(), bytes_.size() - offset);
  std::memcpy(into.data(), bytes_.data() + offset, count);
  return count;
}

Result<FileSource> FileSource::create(int fd) {
  VMSHADOW_ASSIGN(const std::uint64_t bytes, io::file_bytes(fd));
  return FileSource(fd, bytes);
}

std::size_t FileSource::read_at(std::uint64_t offset, MutableByteSpan into) const {
  if (offset >= bytes_) return 0;
  into = into.first(std::min<std::uint64_t>(into.size(), bytes_ - offset));
  if (const auto got = io::read_at(fd_, offset, into)) return *got;
  for (std::size_t at = 0; at < into.size(); at += kUnreadableBytes) {
    const MutableByteSpan part = into.subspan(at, std::min(kUnreadableBytes, into.size() - at));
    if (!io::read_at(fd_, offset + at, part)) std::fill(part.begin(), part.end(), std::byte{});
  }
  return into.size();
}

SegmentScanner::SegmentScanner(const ByteSource& source, std::uint64_t offset)
    : source_(source), bytes_(source.bytes()), offset_(offset) {
  VMSHADOW_ASSERT(format::alignment_gap(offset) == 0);
}

ByteSpan SegmentScanner::peek(std::uint64_t offset, std::size_t count) {
  count = offset >= bytes_ ? 0 : std::min<std::uint64_t>(count, bytes_ - offset);
  if (offset < window_start_ || offset + count > window_start_ + window_bytes_) {
    window_.resize(std::min<std::uint64_t>(kWindowBytes, bytes_));
    window_start_ = offset;
    window_bytes_ = source_.read_at(offset, window_);
  }
  const std::size_t skip = offset - window_start_;
  if (skip >= window_bytes_) return {};
  return ByteSpan(window_).subspan(skip, std::min(count, window_bytes_ - skip));
}

std::uint64_t SegmentScanner::find_prefix(std::uint64_t from) {
  for (std::uint64_t at = from; at < bytes_; at += format::kRecordAlignment) {
    const ByteSpan bytes = peek(at, format::kRecordPrefixBytes);
    if (bytes.size() < format::kRecordPrefixBytes) break;
    if (load<le32>(bytes.data()) == format::kRecordMagic && format::decode_prefix(bytes)) return at;
  }
  return bytes_;
}

ScanItem SegmentScanner::bad(std::uint64_t end, std::string what,
                             std::optional<format::RecordPrefix> prefix) {
  BadRegion region{offset_, end, std::move(what), prefix, false};
  offset_ = align(end);
  return region;
}

/// Behind a seal its block is zero, and the segment ends.
void SegmentScanner::skip_seal_block() {
  if (offset_ >= bytes_ || bytes_ - offset_ >= format::kSealBlockBytes) return;
  if (is_zero(peek(offset_, static_cast<std::size_t>(bytes_ - offset_)))) offset_ = bytes_;
}

/// Space is reserved ahead of the writer: it is zero.
bool SegmentScanner::rest_is_zero() {
  for (std::uint64_t at = offset_; at < bytes_;) {
    const ByteSpan bytes = peek(at, kZeroWindowBytes);
    if (bytes.empty()) return true;  // the file became shorter
    if (!is_zero(bytes)) return false;
    at += bytes.size();
  }
  return true;
}

ScanItem SegmentScanner::next() {
  if (offset_ >= bytes_) return EndOfSegment{};
  const ByteSpan prefix_bytes = peek(offset_, format::kRecordPrefixBytes);
  if (prefix_bytes.size() < format::kRecordPrefixBytes) {
    return bad(bytes_, "the segment ends inside a record's prefix");
  }
  const auto prefix = format::decode_prefix(prefix_bytes);
  if (!prefix) {
    if (is_zero(prefix_bytes) && rest_is_zero()) {
      BadRegion region{offset_, bytes_, "nothing is written here", std::nullopt, true};
      offset_ = align(bytes_);
      return region;
    }
    std::uint64_t search_from = offset_ + format::kRecordAlignment;
    if (prefix.error().code == Errc::version) {
      // The prefix is whole and its layout frozen: its length can be trusted.
      format::RecordPrefixBytes raw;
      std::memcpy(&raw, prefix_bytes.data(), sizeof raw);
      search_from = align(offset_ + format::kRecordPrefixBytes + raw.body_bytes.get());
    }
    return bad(find_prefix(search_from), prefix.error().message);
  }
  const std::uint64_t end = offset_ + format::kRecordPrefixBytes + prefix->body_bytes;
  if (end > bytes_) return bad(bytes_, "the segment ends inside a record's body", *prefix);
  if (!belongs_in_journal(prefix->head.type)) {
    return bad(align(end), fmt::format("a record of type {:#05x} does not belong in a journal",
                                       static_cast<unsigned>(prefix->head.type)));
  }
  const ByteSpan whole =
      peek(offset_, format::kRecordPrefixBytes + prefix->body_bytes + format::alignment_gap(end));
  // A file that is being cut may have become shorter since its size was taken.
  if (whole.size() < end - offset_) {
    return bad(bytes_, "the segment ends inside a record's body", *prefix);
  }
  const ByteSpan body = whole.subspan(format::kRecordPrefixBytes, prefix->body_bytes);
  if (const auto sound = format::check_body(*prefix, body); !sound) {
    return bad(align(end), sound.error().message, *prefix);
  }
  if (!is_zero(whole.subspan(end - offset_))) {
    return bad(align(end), "bytes between two records are not zero", *prefix);
  }
  const GoodRecord record{offset_, *prefix, body};
  offset_ = align(end);
  if (prefix->head.type == RecordType::seal) skip_seal_block();
  return record;
}

}  // namespace vmshadow::store
