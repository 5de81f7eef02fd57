#include "capture/page_ranges.h"

#include <algorithm>
#include <iterator>

namespace vmshadow::capture {

void PageRanges::add(PageRange range) {
  if (range.first >= range.end) return;
  // From the run before, should it reach up to here, to the last that begins no later than the end.
  auto at = ends_.upper_bound(range.first);
  if (at != ends_.begin() && std::prev(at)->second >= range.first) --at;
  while (at != ends_.end() && at->first <= range.end) {
    range.first = std::min(range.first, at->first);
    range.end = std::max(range.end, at->second);
    pages_ -= at->second - at->first;
    at = ends_.erase(at);
  }
  ends_.emplace_hint(at, range.first, range.end);
  pages_ += range.pages();
}

void PageRanges::remove(PageRange range) {
  if (range.first >= range.end) return;
  auto at = ends_.upper_bound(range.first);
  if (at != ends_.begin() && std::prev(at)->second > range.first) --at;
  while (at != ends_.end() && at->first < range.end) {
    const PageRange run{at->first, at->second};
    at = ends_.erase(at);
    pages_ -= run.pages();
    for (const PageRange left : {PageRange{run.first, range.first}, {range.end, run.end}}) {
      if (left.first >= left.end) continue;
      ends_.emplace(left.first, left.end);
      pages_ += left.pages();
    }
  }
}

bool PageRanges::contains(std::uint64_t page) const {
  const auto after = ends_.upper_bound(page);
  return after != ends_.begin() && std::prev(after)->second > page;
}

}  // namespace vmshadow::capture
