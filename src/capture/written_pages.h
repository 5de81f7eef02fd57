// What was written to a disk between two cuts: for each page the newest bytes, and nothing of those
// before. Not thread-safe.
//
// A page is either among those with content or among those that are zeroes, never both.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include <vmshadow/types.h>

#include "capture/page_ranges.h"

namespace vmshadow::capture {

class WrittenPages {
 public:
  /// Whole pages from `first` on; of the last one its beginning is enough, the rest is zeroes then
  /// (what a page has past the disk's end).
  void write(PageNumber first, ByteSpan from);
  void zero(PageRange range);

  [[nodiscard]] bool empty() const { return pages_.empty() && zeroes_.empty(); }
  /// With content: what fills memory. Zeroes take none.
  [[nodiscard]] std::size_t content_pages() const { return pages_.size(); }
  [[nodiscard]] std::uint64_t zero_pages() const { return zeroes_.pages(); }
  [[nodiscard]] const PageRanges& zeroes() const { return zeroes_; }
  /// The pages with content, in ascending order: what is written out goes on like a disk.
  [[nodiscard]] std::vector<PageNumber> pages() const;
  /// The content of one of pages().
  [[nodiscard]] ByteSpan content(PageNumber page) const;

 private:
  using Content = std::unique_ptr<std::array<std::byte, kPageBytes>>;

  std::unordered_map<std::uint64_t, Content> pages_;
  PageRanges zeroes_;
};

}  // namespace vmshadow::capture
