#include "store/journal_image.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/assert.h"
#include "delta/page_group_codec.h"
#include "store/damaged_group.h"
#include "store/record_stream.h"

namespace vmshadow::store {

using format::RecordType;

namespace {

/// So many pages are put in the journal's order at once; bounds what that takes.
constexpr std::size_t kPagesSortedMax = std::size_t{1} << 24;
constexpr std::size_t kGroupBytesMax = format::kGroupPagesMax * kPageBytes;

/// Some of a table's data pages by the groups they are in, the groups in the order of the journal.
class GroupedPages {
 public:
  GroupedPages(const PageTable& table, PageTable::Range range, std::span<const RecordPlace> groups)
      : pages_(range.size()) {
    std::vector<std::uint32_t> ends(groups.size());  // of each group's part of pages_
    for (std::size_t i = range.begin; i < range.end; ++i) ++ends[table.slot_at(i).group];
    std::vector<std::uint32_t> used;
    for (std::uint32_t group = 0; group < groups.size(); ++group) {
      if (ends[group] != 0) used.push_back(group);
    }
    const auto before = [&](std::uint32_t a, std::uint32_t b) {
      return groups[a].position() < groups[b].position();
    };
    if (!std::is_sorted(used.begin(), used.end(), before)) {
      std::sort(used.begin(), used.end(), before);
    }
    places_.reserve(used.size());
    begins_.reserve(used.size() + 1);
    std::uint32_t begin = 0;
    for (const std::uint32_t group : used) {
      places_.push_back(groups[group]);
      begins_.push_back(begin);
      begin += std::exchange(ends[group], begin);
    }
    begins_.push_back(begin);
    for (std::size_t i = range.begin; i < range.end; ++i) {
      pages_[ends[table.slot_at(i).group]++] = static_cast<std::uint32_t>(i - range.begin);
    }
  }

  [[nodiscard]] const std::vector<RecordPlace>& places() const { return places_; }
  /// By index in places(): the pages, counted from the range's begin.
  [[nodiscard]] std::span<const std::uint32_t> pages_of(std::size_t place) const {
    return std::span(pages_).subspan(begins_[place], begins_[place + 1] - begins_[place]);
  }

 private:
  std::vector<std::uint32_t> pages_;
  std::vector<RecordPlace> places_;
  std::vector<std::uint32_t> begins_;
};

SegmentFiles::Reads bytes_by_segment(const std::vector<RecordPlace>& places) {
  SegmentFiles::Reads bytes;
  for (const RecordPlace& place : places) bytes[place.segment()] += place.record_bytes();
  return bytes;
}

/// The machine of the full epoch that a chain begins with.
Result<MachinePtr> read_machine(const EpochIndex& full, const SegmentFiles::Owner& owner,
                                const SegmentFiles& segments) {
  if (full.machine != nullptr) return full.machine;
  if (!full.places.machine) {
    return fail(Errc::corrupt, fmt::format("the machine record of epoch {} of VM '{}' is missing",
                                           full.info.epoch.value, owner.name));
  }
  const RecordPlace& place = *full.places.machine;
  SegmentFiles::Record record;
  std::vector<std::byte> opened;
  VMSHADOW_TRY(segments.read(place, RecordType::machine, owner, record));
  VMSHADOW_ASSIGN(const ByteSpan body,
                  segments.plain_body(place, owner, record.prefix, record.body(), opened));
  VMSHADOW_ASSIGN(MachineDescription machine, format::decode_machine(body));
  return std::make_shared<const MachineDescription>(std::move(machine));
}

}  // namespace

Result<std::unique_ptr<JournalImage>> JournalImage::open(
    SegmentFiles::Owner owner, std::vector<EpochIndexPtr> chain,
    std::shared_ptr<const SegmentFiles> segments, SegmentFiles::Hold held) {
  VMSHADOW_ASSERT(!chain.empty());
  VMSHADOW_ASSIGN(MachinePtr machine, read_machine(*chain.front(), owner, *segments));
  return std::unique_ptr<JournalImage>(new JournalImage(std::move(owner), std::move(chain),
                                                        std::move(machine), std::move(segments),
                                                        std::move(held)));
}

JournalImage::JournalImage(SegmentFiles::Owner owner, std::vector<EpochIndexPtr> chain,
                           MachinePtr machine, std::shared_ptr<const SegmentFiles> segments,
                           SegmentFiles::Hold held)
    : owner_(std::move(owner)),
      chain_(std::move(chain)),
      machine_(std::move(machine)),
      segments_(std::move(segments)),
      held_(std::move(held)) {}

Result<std::vector<std::byte>> JournalImage::device_state() const {
  std::vector<std::byte> state;
  state.reserve(info().device_bytes);
  SegmentFiles::Record record;
  std::vector<std::byte> opened;
  for (const RecordPlace& place : chain_.back()->places.device) {
    segments_->count_read(place.segment(), place.record_bytes());
    VMSHADOW_TRY(segments_->read(place, RecordType::device_state, owner_, record));
    VMSHADOW_ASSIGN(const ByteSpan piece,
                    segments_->plain_body(place, owner_, record.prefix, record.body(), opened));
    format::append_bytes(state, piece);
  }
  return state;
}

Result<std::uint64_t> JournalImage::pages_of(BlockIndex block) const {
  const std::size_t blocks = machine().block_count();
  if (block.value >= blocks) {
    return fail(Errc::invalid_argument,
                fmt::format("VM '{}' has {} RAM blocks and disks, there is no block {}",
                            owner_.name, blocks, block.value));
  }
  return machine().block(block).pages;
}

Error JournalImage::with_place(Error error, const RecordPlace& place) const {
  return Damage{place.position(), place.record_bytes(), std::move(error.message), owner_.name,
                place.epoch()}
      .error();
}

const ResolvedPages& JournalImage::resolved() const {
  std::call_once(resolved_once_, [&] { resolved_.emplace(chain_, machine().block_count()); });
  return *resolved_;
}

Status JournalImage::read_page(BlockIndex block, PageNumber page, MutableByteSpan out) const {
  VMSHADOW_ASSERT(out.size() == kPageBytes);
  VMSHADOW_ASSIGN(const std::uint64_t pages, pages_of(block));
  if (page.value >= pages) {
    return fail(Errc::invalid_argument, fmt::format("block {} of VM '{}' has {} pages, there is no "
                                                    "page {}",
                                                    block.value, owner_.name, pages, page.value));
  }
  const format::PageKey key{block, page};
  const PageLookup found = resolved().find(key);
  if (found.kind != PageLookup::Kind::data) {
    std::fill(out.begin(), out.end(), std::byte{});
    return {};
  }
  const RecordPlace& place = resolved().groups()[found.slot.group];
  SegmentFiles::Record record;
  segments_->count_read(place.segment(), place.record_bytes());
  Status status = read_from_group(place, found.slot.slot, key, record, out);
  if (status || status.error().code != Errc::corrupt) return status;
  const DamagedGroup damaged(place, owner_.id, record.bytes);
  const std::byte* const whole = damaged.page(found.slot.slot, key);
  if (whole == nullptr) return status;
  std::copy_n(whole, kPageBytes, out.begin());
  return {};
}

Status JournalImage::read_from_group(const RecordPlace& place, std::size_t slot,
                                     format::PageKey key, SegmentFiles::Record& record,
                                     MutableByteSpan out) const {
  std::vector<std::byte> opened;
  VMSHADOW_TRY(segments_->read(place, RecordType::page_group, owner_, record));
  VMSHADOW_ASSIGN(const ByteSpan body,
                  segments_->plain_body(place, owner_, record.prefix, record.body(), opened));
  const auto group = format::decode_page_group(body);
  if (!group) return fail(with_place(group.error(), place));
  if (slot >= group->page_count || group->keys[slot] != key) {
    return fail(with_place({Errc::corrupt, "the group does not hold the page"}, place));
  }
  if (auto decoded = delta::decode_page(*group, slot, out); !decoded) {
    return fail(with_place(decoded.error(), place));
  }
  return {};
}

Status JournalImage::for_each_page(BlockIndex block, const PageVisitor& visit) const {
  VMSHADOW_ASSIGN(const std::uint64_t pages, pages_of(block));
  const PageTable& table = resolved().pages();
  Status status;
  table.for_each_zero_run(block, [&](PageNumber first, std::uint64_t count) {
    const std::uint64_t end = std::min(pages, first.value + count);
    for (std::uint64_t page = first.value; page < end && status; ++page) {
      status = visit(PageNumber{page}, nullptr);
    }
  });
  VMSHADOW_TRY(std::move(status));
  PageTable::Range range = table.data_range(block);
  while (range.size() > 0 && table.page_at(range.end - 1).value >= pages) --range.end;
  while (range.size() > 0) {
    const std::size_t end = range.begin + std::min(range.size(), kPagesSortedMax);
    VMSHADOW_TRY(visit_data_pages(block, {range.begin, end}, visit));
    range.begin = end;
  }
  return {};
}

Status JournalImage::visit_data_pages(BlockIndex block, PageTable::Range range,
                                      const PageVisitor& visit) const {
  const PageTable& table = resolved().pages();
  const GroupedPages grouped(table, range, resolved().groups());
  const auto wanted_of = [&](std::size_t g) {
    std::vector<Wanted> wanted;
    wanted.reserve(grouped.pages_of(g).size());
    for (const std::uint32_t i : grouped.pages_of(g)) {
      wanted.push_back(
          {table.slot_at(range.begin + i).slot, {block, table.page_at(range.begin + i)}});
    }
    return wanted;
  };
  const auto decode = [&](std::size_t g, ByteSpan body, MutableByteSpan out) {
    return decode_group(grouped.places()[g], body, wanted_of(g), out);
  };
  RecordStream groups(*segments_, owner_,
                      {RecordType::page_group, grouped.places(), decode, kGroupBytesMax});
  for (SegmentFiles::Reads reads = bytes_by_segment(grouped.places());
       const auto& [segment, bytes] : reads) {
    segments_->count_read(segment, bytes);
  }
  for (std::size_t g = 0; g < grouped.places().size(); ++g) {
    const std::vector<Wanted> wanted = wanted_of(g);
    const auto pages = groups.next();
    if (!pages && pages.error().code != Errc::corrupt) return fail(pages.error());
    if (!pages) {
      VMSHADOW_TRY(visit_damaged_group(grouped.places()[g], wanted, pages.error(), visit));
      continue;
    }
    for (const Wanted& page : wanted) {
      VMSHADOW_TRY(visit(page.key.page, pages->data() + page.slot * kPageBytes));
    }
  }
  return {};
}

Status JournalImage::decode_group(const RecordPlace& place, ByteSpan body,
                                  std::span<const Wanted> wanted, MutableByteSpan out) const {
  const auto group = format::decode_page_group(body);
  if (!group) return fail(with_place(group.error(), place));
  unsigned slots = 0;
  for (const Wanted& page : wanted) {
    if (page.slot >= group->page_count || group->keys[page.slot] != page.key) {
      return fail(with_place({Errc::corrupt, "the group does not hold the page"}, place));
    }
    slots |= 1U << page.slot;
  }
  if (auto decoded = delta::decode_wanted(*group, static_cast<std::uint16_t>(slots),
                                          out.first(group->page_count * kPageBytes));
      !decoded) {
    return fail(with_place(decoded.error(), place));
  }
  return {};
}

Status JournalImage::visit_damaged_group(const RecordPlace& place, std::span<const Wanted> wanted,
                                         const Error& error, const PageVisitor& visit) const {
  SegmentFiles::Record record;
  record.bytes.resize(place.record_bytes());
  // Of a segment that was cut short, as far as it goes.
  VMSHADOW_TRY(segments_->read_raw(place.segment(), place.offset(), record.bytes));
  const DamagedGroup damaged(place, owner_.id, record.bytes);
  for (const Wanted& page : wanted) {
    const std::byte* const whole = damaged.page(page.slot, page.key);
    if (whole == nullptr) {
      return fail(Errc::corrupt,
                  fmt::format("{}; page {} of block {} is lost with it", error.message,
                              page.key.page.value, page.key.block.value));
    }
    VMSHADOW_TRY(visit(page.key.page, whole));
  }
  return {};
}

}  // namespace vmshadow::store
