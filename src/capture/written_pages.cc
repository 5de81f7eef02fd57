#include "capture/written_pages.h"

#include <algorithm>
#include <cstring>

#include "base/assert.h"

namespace vmshadow::capture {

void WrittenPages::write(PageNumber first, ByteSpan from) {
  if (from.empty()) return;
  for (std::uint64_t page = first.value; !from.empty(); ++page) {
    const std::size_t bytes = std::min(from.size(), kPageBytes);
    Content& content = pages_[page];
    if (!content) content = std::make_unique_for_overwrite<Content::element_type>();
    std::memcpy(content->data(), from.data(), bytes);
    std::memset(content->data() + bytes, 0, kPageBytes - bytes);
    if (!zeroes_.empty()) zeroes_.remove({page, page + 1});
    from = from.subspan(bytes);
  }
}

void WrittenPages::zero(PageRange range) {
  if (range.pages() < pages_.size()) {
    for (std::uint64_t page = range.first; page < range.end; ++page) pages_.erase(page);
  } else {
    std::erase_if(pages_, [&](const auto& entry) {
      return entry.first >= range.first && entry.first < range.end;
    });
  }
  zeroes_.add(range);
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
  return *at->second;
}

}  // namespace vmshadow::capture
