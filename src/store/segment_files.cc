#include "store/segment_files.h"

#include <fmt/format.h>

#include "io/file.h"
#include "store/damage.h"

namespace vmshadow::store {

Result<std::shared_ptr<const UniqueFd>> SegmentFiles::file(SegmentId id) const {
  const std::lock_guard lock(mutex_);
  if (const auto found = open_.find(id); found != open_.end()) return found->second;
  VMSHADOW_ASSIGN(UniqueFd fd, io::open_for_reading(directory_.segment_path(id)));
  if (open_.size() >= kOpenMax) open_.erase(open_.begin());  // whoever reads it holds on to it
  return open_.emplace(id, std::make_shared<const UniqueFd>(std::move(fd))).first->second;
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
