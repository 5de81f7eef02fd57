#include "store/page_copies.h"

#include <algorithm>

#include "delta/page_group_codec.h"

namespace vmshadow::store {

bool PageCopies::read(const SegmentFiles::Owner& owner, const RecordPlace& place, std::size_t slot,
                      format::PageKey key, std::uint64_t checksum, MutableByteSpan out) {
  if (!segments_.read(place, format::RecordType::page_group, owner, record_)) return false;
  const auto group = format::decode_page_group(record_.body());
  return group && slot < group->page_count && group->keys[slot] == key &&
         group->checksums[slot] == checksum && delta::decode_page(*group, slot, out);
}

std::optional<PageCopies::Copy> PageCopies::find(const SegmentFiles::Owner& owner,
                                                 format::PageKey key, std::uint64_t checksum,
                                                 const RecordPlace& damaged, MutableByteSpan out) {
  const std::vector<EpochIndexPtr> epochs = index_.epochs(owner.id);
  for (auto epoch = epochs.rbegin(); epoch != epochs.rend(); ++epoch) {
    const PageLookup found = (*epoch)->pages.find(key);
    if (found.kind == PageLookup::Kind::absent) continue;
    if (found.kind == PageLookup::Kind::zero) {
      std::fill(out.begin(), out.end(), std::byte{});
      if (format::page_checksum(out.data()) != checksum) continue;
      return Copy{(*epoch)->info.epoch, std::nullopt};
    }
    const RecordPlace& place = (*epoch)->places.groups[found.slot.group];
    if (place.sealed() || place.position() == damaged.position()) continue;
    if (read(owner, place, found.slot.slot, key, checksum, out)) {
      return Copy{(*epoch)->info.epoch, place};
    }
  }
  return std::nullopt;
}

}  // namespace vmshadow::store
