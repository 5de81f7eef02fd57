#include "store/segment_files.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "io/file.h"
#include "store/damage.h"

namespace vmshadow::store {

Result<std::shared_ptr<const SegmentFiles::OpenFile>> SegmentFiles::file(SegmentId id) const {
  const std::lock_guard lock(mutex_);
  std::weak_ptr<const OpenFile>& known = open_[id];
  if (auto file = known.lock()) return file;
  VMSHADOW_ASSIGN(const std::string path, catalog_->path(id));
  VMSHADOW_ASSIGN(UniqueFd opened, io::open_shared(path));
  UniqueFd past_cache = io::open_past_cache(opened.get());
  const auto file =
      std::make_shared<const OpenFile>(OpenFile{std::move(opened), std::move(past_cache)});
  known = file;
  recent_.emplace_back(id, file);
  if (recent_.size() > kOpenMax) recent_.pop_front();  // whoever reads it holds on to it
  return file;
}

void SegmentFiles::forget(SegmentId id) const {
  const std::lock_guard lock(mutex_);
  std::erase_if(recent_, [&](const auto& held) { return held.first == id; });
  // Who holds it goes on finding it here: numbers of segments never come again.
  std::erase_if(open_, [](const auto& known) { return known.second.expired(); });
}

Result<SegmentFiles::Hold> SegmentFiles::hold(const std::vector<SegmentId>& segments) const {
  Hold held;
  held.reserve(segments.size());
  for (const SegmentId id : segments) {
    VMSHADOW_ASSIGN(held.emplace_back(), file(id));
  }
  return held;
}

namespace {
Error damaged(const RecordPlace& place, const SegmentFiles::Owner& owner, std::string what) {
  return Damage{place.position(), place.record_bytes(), std::move(what), owner.name, place.epoch()}
      .error();
}
}  // namespace

Result<std::size_t> SegmentFiles::read_raw(SegmentId id, SegmentOffset offset,
                                           MutableByteSpan out) const {
  VMSHADOW_ASSIGN(const auto opened, file(id));
  return io::read_at(opened->fd.get(), offset.value, out);
}

Result<ByteSpan> SegmentFiles::read_past_cache(SegmentId id, SegmentOffset offset,
                                               std::size_t bytes, io::AlignedBuffer& buffer) const {
  VMSHADOW_ASSIGN(const auto opened, file(id));
  const std::uint64_t begin = offset.value / io::kDirectBlockBytes * io::kDirectBlockBytes;
  const auto before = static_cast<std::size_t>(offset.value - begin);
  const auto blocks = static_cast<std::size_t>(io::round_up_to_block(before + bytes));
  if (buffer.size() < blocks) buffer = io::AlignedBuffer(blocks);
  if (opened->past_cache && !io::is_cached(opened->fd.get(), offset.value, bytes)) {
    const auto got = io::read_at(opened->past_cache.get(), begin, buffer.span().first(blocks));
    // An error may be the file system's way to refuse: the page cache knows better.
    if (got) {
      const std::size_t behind = std::min(bytes, *got - std::min(*got, before));
      return ByteSpan(buffer.span().subspan(before, behind));
    }
  }
  const MutableByteSpan into = buffer.span().first(bytes);
  VMSHADOW_ASSIGN(const std::size_t got, io::read_at(opened->fd.get(), offset.value, into));
  return ByteSpan(into.first(got));
}

void SegmentFiles::count_read(SegmentId id, std::uint64_t bytes) const {
  const std::lock_guard lock(reads_mutex_);
  reads_[id] += bytes;
}

SegmentFiles::Reads SegmentFiles::take_reads() const {
  const std::lock_guard lock(reads_mutex_);
  return std::exchange(reads_, {});
}

Status SegmentFiles::read(const RecordPlace& place, format::RecordType type, const Owner& owner,
                          Record& record) const {
  VMSHADOW_ASSIGN(const auto opened, file(place.segment()));
  record.bytes.resize(place.record_bytes());
  const auto got = io::read_at(opened->fd.get(), place.offset().value, record.bytes);
  if (!got) {
    Error error = damaged(place, owner, got.error().message);
    error.code = got.error().code;
    return fail(std::move(error));
  }
  VMSHADOW_ASSIGN(record.prefix, check(place, type, owner, ByteSpan(record.bytes).first(*got)));
  return {};
}

Result<ByteSpan> SegmentFiles::plain_body(const RecordPlace& place, const Owner& owner,
                                          const format::RecordPrefix& prefix, ByteSpan body,
                                          std::vector<std::byte>& opened) const {
  if (!place.sealed()) return body;
  if (auto status = keys_->open(owner.name, prefix, body, opened); !status) {
    if (status.error().code != Errc::corrupt) return fail(std::move(status).error());
    return fail(damaged(place, owner, std::move(status).error().message));
  }
  return ByteSpan(opened);
}

Result<format::RecordPrefix> SegmentFiles::check(const RecordPlace& place, format::RecordType type,
                                                 const Owner& owner, ByteSpan bytes) {
  if (bytes.size() < place.record_bytes()) {
    return fail(damaged(place, owner, "the segment ends inside the record"));
  }
  const auto prefix = format::decode_prefix(bytes);
  if (!prefix) return fail(damaged(place, owner, prefix.error().message));
  const auto stored = place.sealed() ? format::sealed_type(type) : type;
  if (prefix->body_bytes != place.body_bytes() || prefix->head.type != stored ||
      prefix->head.epoch != place.epoch() || prefix->head.vm != owner.id) {
    return fail(damaged(place, owner, "another record stands where the index expects one"));
  }
  const auto sound = format::check_body(*prefix, bytes.subspan(format::kRecordPrefixBytes));
  if (!sound) return fail(damaged(place, owner, sound.error().message));
  return *prefix;
}

}  // namespace vmshadow::store
