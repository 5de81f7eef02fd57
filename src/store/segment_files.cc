#include "store/segment_files.h"

#include <fmt/format.h>

#include <utility>

#include "io/file.h"
#include "store/damage.h"

namespace vmshadow::store {

Result<std::shared_ptr<const UniqueFd>> SegmentFiles::file(SegmentId id) const {
  const std::lock_guard lock(mutex_);
  std::weak_ptr<const UniqueFd>& known = open_[id];
  if (auto fd = known.lock()) return fd;
  VMSHADOW_ASSIGN(const std::string path, catalog_->path(id));
  VMSHADOW_ASSIGN(UniqueFd opened, io::open_shared(path));
  auto fd = std::make_shared<const UniqueFd>(std::move(opened));
  known = fd;
  recent_.emplace_back(id, fd);
  if (recent_.size() > kOpenMax) recent_.pop_front();  // whoever reads it holds on to it
  return fd;
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
  VMSHADOW_ASSIGN(const auto fd, file(id));
  return io::read_at(fd->get(), offset.value, out);
}

void SegmentFiles::will_read(SegmentId id, SegmentOffset offset, std::uint64_t bytes) const {
  if (const auto fd = file(id)) io::announce_reading((*fd)->get(), offset.value, bytes);
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
  VMSHADOW_ASSIGN(const auto fd, file(place.segment()));
  record.bytes.resize(place.record_bytes());
  const auto got = io::read_at(fd->get(), place.offset().value, record.bytes);
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
