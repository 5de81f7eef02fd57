#include "store/damaged_group.h"

#include "delta/page_group_codec.h"

namespace vmshadow::store {

DamagedGroup::DamagedGroup(const RecordPlace& place, const VmId& owner, ByteSpan record) {
  if (place.sealed() || record.size() < place.record_bytes()) return;
  if (const auto prefix = format::decode_prefix(record);
      prefix && (prefix->head.type != format::RecordType::page_group || prefix->head.vm != owner ||
                 prefix->head.epoch != place.epoch() || prefix->body_bytes != place.body_bytes())) {
    return;
  }
  const auto group =
      format::decode_page_group(record.subspan(format::kRecordPrefixBytes, place.body_bytes()));
  if (!group || group->page_count != place.pages() || group->codec == format::Codec::lost) return;
  page_count_ = group->page_count;
  keys_ = group->keys;
  checksums_ = group->checksums;
  pages_.resize(page_count_ * kPageBytes);
  whole_ = delta::salvage_pages(*group, pages_);
}

const std::byte* DamagedGroup::page(std::size_t slot, format::PageKey key) const {
  if (!knows(slot, key) || (whole_ >> slot & 1) == 0) return nullptr;
  return pages_.data() + slot * kPageBytes;
}

std::optional<std::uint64_t> DamagedGroup::claimed_checksum(std::size_t slot,
                                                            format::PageKey key) const {
  if (!knows(slot, key)) return std::nullopt;
  return checksums_[slot];
}

}  // namespace vmshadow::store
