#include "store/batch_check.h"

#include <utility>

namespace vmshadow::store {

using format::RecordType;

std::optional<format::Mark> own_mark(SegmentId segment,
                                     const std::optional<format::SegmentSalt>& salt,
                                     const GoodRecord& record) {
  if (!salt || record.prefix.head.type != RecordType::mark) return std::nullopt;
  const auto mark = format::decode_mark(record.body);
  if (!mark || mark->begin.segment != segment || mark->salt != *salt ||
      mark->begin.offset.value < format::kSegmentHeadBytes ||
      mark->begin.offset.value > record.offset) {
    return std::nullopt;
  }
  return *mark;
}

bool BatchCheck::add(const GoodRecord& record, std::uint64_t end) {
  begin_ = next_begin_;
  if (record.prefix.head.type != RecordType::mark) {
    chain_ = format::extend_chain(chain_, record.prefix.prefix_checksum);
    return true;
  }
  const auto mark = own_mark(segment_, salt_, record);
  const bool is_right = mark && mark->begin.offset.value == begin_ && mark->chain == chain_;
  next_begin_ = end;
  chain_ = 0;
  return std::exchange(is_known_, true) ? is_right : true;
}

}  // namespace vmshadow::store
