#include "store/record_check.h"

#include "delta/page_group_codec.h"
#include "format/epoch_records.h"

namespace vmshadow::store {

Status check_decodes(const GoodRecord& record, LostPages lost, PageScratch& scratch) {
  if (record.prefix.head.type != format::RecordType::page_group) return {};
  VMSHADOW_ASSIGN(const format::PageGroup group, format::decode_page_group(record.body));
  if (group.codec == format::Codec::lost && lost == LostPages::accepted) return {};
  scratch.resize(format::kGroupPagesMax * kPageBytes);
  return delta::decode_pages(group, MutableByteSpan(scratch).first(group.page_count * kPageBytes));
}

}  // namespace vmshadow::store
