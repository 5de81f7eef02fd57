#include "capture/written_pages.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/assert.h"

namespace vmshadow::capture {

template <class Part>
void WrittenPages::split(std::uint64_t offset, std::uint64_t bytes, const Part& part) {
  VMSHADOW_ASSERT(offset % kSectorBytes == 0 && bytes % kSectorBytes == 0);
  while (bytes > 0) {
    const std::uint64_t within = offset % kPageBytes;
    const std::uint64_t here = std::min(bytes, kPageBytes - within);
    part(offset / kPageBytes, within, here);
    offset += here;
    bytes -= here;
  }
}

std::uint8_t WrittenPages::sectors(std::uint64_t first_byte, std::uint64_t bytes) {
  const unsigned count = static_cast<unsigned>(bytes / kSectorBytes);
  return static_cast<std::uint8_t>(((1U << count) - 1) << (first_byte / kSectorBytes));
}

WrittenPages::Page& WrittenPages::page_for_change(std::uint64_t page) {
  const auto [at, is_new] = pages_.try_emplace(page);
  if (is_new) {
    at->second.content = std::make_unique<std::array<std::byte, kPageBytes>>();  // zeroes
    if (zeroes_.contains(page)) {
      zeroes_.remove({page, page + 1});
      at->second.known = kAll;
    }
  }
  return at->second;
}

void WrittenPages::write(std::uint64_t offset, ByteSpan from) {
  split(offset, from.size(), [&](std::uint64_t number, std::uint64_t within, std::uint64_t bytes) {
    Page& page = page_for_change(number);
    std::memcpy(page.content->data() + within, from.data(), bytes);
    page.known |= sectors(within, bytes);
    from = from.subspan(bytes);
  });
}

void WrittenPages::zero(std::uint64_t offset, std::uint64_t bytes) {
  VMSHADOW_ASSERT(offset % kSectorBytes == 0 && bytes % kSectorBytes == 0);
  const std::uint64_t end = offset + bytes;
  const PageRange whole{(offset + kPageBytes - 1) / kPageBytes, end / kPageBytes};
  const auto zero_part = [&](std::uint64_t from, std::uint64_t to) {
    split(from, to - from, [&](std::uint64_t number, std::uint64_t within, std::uint64_t count) {
      if (zeroes_.contains(number)) return;
      Page& page = page_for_change(number);
      std::memset(page.content->data() + within, 0, count);
      page.known |= sectors(within, count);
    });
  };
  if (whole.first >= whole.end) return zero_part(offset, end);
  zero_part(offset, whole.first * kPageBytes);
  zero_whole(whole);
  zero_part(whole.end * kPageBytes, end);
}

void WrittenPages::zero_whole(PageRange range) {
  if (range.pages() < pages_.size()) {
    for (std::uint64_t page = range.first; page < range.end; ++page) pages_.erase(page);
  } else {
    std::erase_if(pages_, [&](const auto& entry) {
      return entry.first >= range.first && entry.first < range.end;
    });
  }
  zeroes_.add(range);
}

void WrittenPages::fill(Page& page, ByteSpan content, std::uint8_t known) {
  for (unsigned sector = 0; sector < kSectors; ++sector) {
    const auto bit = static_cast<std::uint8_t>(1U << sector);
    if ((page.known & bit) != 0 || (known & bit) == 0) continue;
    std::memcpy(page.content->data() + sector * kSectorBytes,
                content.data() + sector * kSectorBytes, kSectorBytes);
  }
  page.known |= known;
}

void WrittenPages::merge_newer(WrittenPages&& newer) {
  newer.zeroes_.for_each([&](PageRange range) { zero_whole(range); });
  for (auto& [number, page] : newer.pages_) {
    if (page.known != kAll) {
      Page& here = page_for_change(number);
      fill(page, *here.content, here.known);
    }
    zeroes_.remove({number, number + 1});
    pages_.insert_or_assign(number, std::move(page));
  }
  newer = {};
}

void WrittenPages::end_at(std::uint64_t disk_bytes) {
  const std::uint64_t within = disk_bytes % kPageBytes;
  const auto at = within == 0 ? pages_.end() : pages_.find(disk_bytes / kPageBytes);
  if (at != pages_.end()) at->second.known |= sectors(within, kPageBytes - within);
}

WrittenPages WrittenPages::take_complete() {
  WrittenPages taken = std::exchange(*this, {});
  for (const PageNumber page : taken.incomplete()) {
    pages_.insert(taken.pages_.extract(page.value));
  }
  return taken;
}

bool WrittenPages::is_incomplete(PageNumber page) const {
  const auto at = pages_.find(page.value);
  return at != pages_.end() && at->second.known != kAll;
}

std::vector<PageNumber> WrittenPages::incomplete() const {
  std::vector<PageNumber> numbers;
  for (const auto& [number, page] : pages_) {
    if (page.known != kAll) numbers.emplace_back(number);
  }
  std::sort(numbers.begin(), numbers.end());
  return numbers;
}

void WrittenPages::complete(PageNumber page, ByteSpan content) {
  VMSHADOW_ASSERT(content.size() == kPageBytes);
  if (const auto at = pages_.find(page.value); at != pages_.end()) fill(at->second, content, kAll);
}

std::vector<PageNumber> WrittenPages::pages() const {
  std::vector<PageNumber> numbers;
  numbers.reserve(pages_.size());
  for (const auto& [number, page] : pages_) numbers.emplace_back(number);
  std::sort(numbers.begin(), numbers.end());
  return numbers;
}

ByteSpan WrittenPages::content(PageNumber page) const {
  const auto at = pages_.find(page.value);
  VMSHADOW_ASSERT(at != pages_.end());
  return *at->second.content;
}

}  // namespace vmshadow::capture
