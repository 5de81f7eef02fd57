#include "store/segment_files.h"

#include <fmt/format.h>

#include "io/file.h"

namespace vmshadow::store {

Result<std::shared_ptr<const UniqueFd>> SegmentFiles::file(SegmentId id) const {
  const std::lock_guard lock(mutex_);
  if (const auto found = open_.find(id); found != open_.end()) return found->second;
  VMSHADOW_ASSIGN(UniqueFd fd, io::open_for_reading(directory_.segment_path(id)));
  if (open_.size() >= kOpenMax) open_.erase(open_.begin());  // whoever reads it holds on to it
  return open_.emplace(id, std::make_shared<const UniqueFd>(std::move(fd))).first->second;
}

Status SegmentFiles::read(const RecordPlace& place, format::RecordType type,
                          const std::string& vm_name, Epoch epoch, Record& record) const {
  const format::JournalPosition at = place.position();
  VMSHADOW_ASSIGN(const auto fd, file(at.segment));
  record.bytes.resize(format::kRecordPrefixBytes + place.body_bytes);
  const auto damaged = [&](std::string what) {
    return fail(Damage{at, record.bytes.size(), std::move(what), vm_name, epoch}.error());
  };
  const auto got = io::read_at(fd->get(), at.offset.value, record.bytes);
  if (!got) return damaged(got.error().message);
  if (*got < record.bytes.size()) return damaged("the segment ends inside the record");
  const auto prefix = format::decode_prefix(record.bytes);
  if (!prefix) return damaged(prefix.error().message);
  record.prefix = *prefix;
  if (const auto sound = format::check_body(*prefix, record.body()); !sound) {
    return damaged(sound.error().message);
  }
  if (prefix->head.type != type || prefix->head.epoch != epoch ||
      prefix->head.vm != vm_id(vm_name)) {
    return damaged("another record stands where the index expects one");
  }
  return {};
}

}  // namespace vmshadow::store
