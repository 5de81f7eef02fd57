#include "store/journal_image.h"

#include <fmt/format.h>

#include <algorithm>
#include <tuple>

#include "base/assert.h"
#include "delta/page_group_codec.h"

namespace vmshadow::store {

using format::RecordType;

JournalImage::JournalImage(std::string vm_name, std::vector<EpochIndexPtr> chain,
                           std::shared_ptr<const SegmentFiles> segments)
    : vm_name_(std::move(vm_name)), chain_(std::move(chain)), segments_(std::move(segments)) {
  VMSHADOW_ASSERT(!chain_.empty() && chain_.front()->machine != nullptr);
}

Result<std::vector<std::byte>> JournalImage::device_state() const {
  std::vector<std::byte> state;
  state.reserve(info().device_bytes);
  SegmentFiles::Record record;
  for (const RecordPlace& place : chain_.back()->places.device) {
    VMSHADOW_TRY(segments_->read(place, RecordType::device_state, vm_name_, info().epoch, record));
    format::append_bytes(state, record.body());
  }
  return state;
}

Result<std::uint64_t> JournalImage::pages_of(BlockIndex block) const {
  const auto& blocks = machine().layout.blocks;
  if (block.value >= blocks.size()) {
    return fail(Errc::invalid_argument,
                fmt::format("VM '{}' has {} RAM blocks, there is no block {}", vm_name_,
                            blocks.size(), block.value));
  }
  return blocks[block.value].pages();
}

Error JournalImage::with_place(Error error, std::uint32_t epoch, std::uint32_t group) const {
  const RecordPlace& place = chain_[epoch]->places.groups[group];
  return Damage{place.position(), format::kRecordPrefixBytes + place.body_bytes,
                std::move(error.message), vm_name_, chain_[epoch]->info.epoch}
      .error();
}

Result<format::PageGroup> JournalImage::read_group(std::uint32_t epoch, std::uint32_t group,
                                                   SegmentFiles::Record& record) const {
  const EpochIndex& index = *chain_[epoch];
  VMSHADOW_TRY(segments_->read(index.places.groups[group], RecordType::page_group, vm_name_,
                               index.info.epoch, record));
  auto decoded = format::decode_page_group(record.body());
  if (!decoded) return fail(with_place(decoded.error(), epoch, group));
  return decoded;
}

Status JournalImage::read_page(BlockIndex block, PageNumber page, MutableByteSpan out) const {
  VMSHADOW_ASSERT(out.size() == kPageBytes);
  VMSHADOW_ASSIGN(const std::uint64_t pages, pages_of(block));
  if (page.value >= pages) {
    return fail(Errc::invalid_argument, fmt::format("block {} of VM '{}' has {} pages, there is no "
                                                    "page {}",
                                                    block.value, vm_name_, pages, page.value));
  }
  const format::PageKey key{block, page};
  for (std::size_t i = chain_.size(); i-- > 0;) {
    const PageLookup found = chain_[i]->pages.find(key);
    if (found.kind == PageLookup::Kind::absent) continue;
    if (found.kind == PageLookup::Kind::zero) break;
    const auto epoch = static_cast<std::uint32_t>(i);
    SegmentFiles::Record record;
    VMSHADOW_ASSIGN(const format::PageGroup group, read_group(epoch, found.slot.group, record));
    if (found.slot.slot >= group.page_count || group.keys[found.slot.slot] != key) {
      return fail(
          with_place({Errc::corrupt, "the group does not hold the page"}, epoch, found.slot.group));
    }
    if (auto decoded = delta::decode_page(group, found.slot.slot, out); !decoded) {
      return fail(with_place(decoded.error(), epoch, found.slot.group));
    }
    return {};
  }
  std::fill(out.begin(), out.end(), std::byte{});
  return {};
}

/// Visits the zero pages and collects the data pages, the newest version of each.
Status JournalImage::visit_zero_pages(BlockIndex block, std::uint64_t pages,
                                      const PageVisitor& visit,
                                      std::vector<NeededPage>& needed) const {
  std::vector<bool> seen(pages);
  for (std::size_t i = chain_.size(); i-- > 0;) {
    chain_[i]->pages.for_each_data_page(block, [&](PageNumber page, PageSlot slot) {
      if (page.value >= pages || seen[page.value]) return;
      seen[page.value] = true;
      needed.push_back({static_cast<std::uint32_t>(i), slot.group, slot.slot,
                        static_cast<std::uint32_t>(page.value >> 32),
                        static_cast<std::uint32_t>(page.value)});
    });
    Status status;
    chain_[i]->pages.for_each_zero_run(block, [&](PageNumber first, std::uint64_t count) {
      const std::uint64_t end = std::min(pages, first.value + count);
      for (std::uint64_t page = first.value; page < end && status; ++page) {
        if (seen[page]) continue;
        seen[page] = true;
        status = visit(PageNumber{page}, nullptr);
      }
    });
    VMSHADOW_TRY(std::move(status));
  }
  return {};
}

Status JournalImage::for_each_page(BlockIndex block, const PageVisitor& visit) const {
  VMSHADOW_ASSIGN(const std::uint64_t pages, pages_of(block));
  std::vector<NeededPage> needed;
  VMSHADOW_TRY(visit_zero_pages(block, pages, visit, needed));
  std::sort(needed.begin(), needed.end(), [](const NeededPage& a, const NeededPage& b) {
    return std::tie(a.epoch, a.group, a.slot) < std::tie(b.epoch, b.group, b.slot);
  });
  std::vector<std::byte> raw(format::kGroupPagesMax * kPageBytes);
  SegmentFiles::Record record;
  for (std::size_t i = 0; i < needed.size();) {
    const std::uint32_t epoch = needed[i].epoch;
    const std::uint32_t index = needed[i].group;
    VMSHADOW_ASSIGN(const format::PageGroup group, read_group(epoch, index, record));
    const MutableByteSpan out = MutableByteSpan(raw).first(group.page_count * kPageBytes);
    if (auto decoded = delta::decode_pages(group, out); !decoded) {
      return fail(with_place(decoded.error(), epoch, index));
    }
    for (; i < needed.size() && needed[i].epoch == epoch && needed[i].group == index; ++i) {
      const NeededPage& page = needed[i];
      if (page.slot >= group.page_count ||
          group.keys[page.slot] != format::PageKey{block, page.page()}) {
        return fail(with_place({Errc::corrupt, "the group does not hold the page"}, epoch, index));
      }
      VMSHADOW_TRY(visit(page.page(), raw.data() + page.slot * kPageBytes));
    }
  }
  return {};
}

}  // namespace vmshadow::store
