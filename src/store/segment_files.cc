#include "store/segment_files.h"

#include <fmt/format.h>

#include "io/file.h"
#include "store/damage.h"

namespace vmshadow::store {

Result<std::shared_ptr<const UniqueFd>> SegmentFiles::file(SegmentId id) const {
  const std::lock_guard lock(mutex_);
  std::weak_ptr<const UniqueFd>& known = open_[id];
  if (auto fd = known.lock()) return fd;
  VMSHADOW_ASSIGN(const std::string path, catalog_->path(id));
  VMSHADOW_ASSIGN(UniqueFd opened, io::open_for_reading(path));
  auto fd = std::make_shared<const UniqueFd>(std::move(opened));
  known = fd;
  recent_.push_back(fd);
  if (recent_.size() > kOpenMax) recent_.pop_front();  // whoever reads it holds on to it
  return fd;
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
tl::unexpected<Error> damaged(const RecordPlace& place, const std::string& vm_name,
                              std::string what) {
  return fail(
      Damage{place.position(), place.record_bytes(), std::move(what), vm_name, place.epoch()}
          .error());
}
}  // namespace

Result<std::size_t> SegmentFiles::read_raw(SegmentId id, SegmentOffset offset,
                                           MutableByteSpan out) const {
  VMSHADOW_ASSIGN(const auto fd, file(id));
  return io::read_at(fd->get(), offset.value, out);
}

Status SegmentFiles::read(const RecordPlace& place, format::RecordType type,
                          const std::string& vm_name, Record& record) const {
  VMSHADOW_ASSIGN(const auto fd, file(place.segment()));
  record.bytes.resize(place.record_bytes());
  const auto got = io::read_at(fd->get(), place.offset().value, record.bytes);
  if (!got) return damaged(place, vm_name, got.error().message);
  VMSHADOW_ASSIGN(record.prefix, check(place, type, vm_name, ByteSpan(record.bytes).first(*got)));
  return {};
}

Result<format::RecordPrefix> SegmentFiles::check(const RecordPlace& place, format::RecordType type,
                                                 const std::string& vm_name, ByteSpan bytes) {
  if (bytes.size() < place.record_bytes()) {
    return damaged(place, vm_name, "the segment ends inside the record");
  }
  const auto prefix = format::decode_prefix(bytes);
  if (!prefix) return damaged(place, vm_name, prefix.error().message);
  if (prefix->body_bytes != place.body_bytes() || prefix->head.type != type ||
      prefix->head.epoch != place.epoch() || prefix->head.vm != vm_id(vm_name)) {
    return damaged(place, vm_name, "another record stands where the index expects one");
  }
  const auto sound = format::check_body(*prefix, bytes.subspan(format::kRecordPrefixBytes));
  if (!sound) return damaged(place, vm_name, sound.error().message);
  return *prefix;
}

}  // namespace vmshadow::store
