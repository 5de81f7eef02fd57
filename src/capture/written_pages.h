// What was written to a disk between two cuts: for each page the newest bytes, and nothing of those
// before. Not thread-safe.
//
// A guest writes sectors, an epoch holds pages. So each page remembers which of its sectors are
// known; whoever cuts reads the others from the disk itself (complete()). A page is either among
// those with content or among those that are zeroes, never both.
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
  /// Everything is a multiple of it, by the caller's care.
  static constexpr std::uint64_t kSectorBytes = 512;

  /// Both in bytes from the disk's start.
  void write(std::uint64_t offset, ByteSpan from);
  void zero(std::uint64_t offset, std::uint64_t bytes);
  /// What was written after all that is here. Costs follow what is newer, not what is here; but
  /// for zeroes over more pages than are here.
  void merge_newer(WrittenPages&& newer);
  /// What a page has past the disk's end is zeroes, and known.
  void end_at(std::uint64_t disk_bytes);

  /// Takes out all but the pages of which some sectors are not known.
  [[nodiscard]] WrittenPages take_complete();

  [[nodiscard]] bool is_incomplete(PageNumber page) const;
  /// The pages of which some sectors are not known, in ascending order.
  [[nodiscard]] std::vector<PageNumber> incomplete() const;
  /// Takes from `content`, the whole page as it is on the disk, what is not known here. A page that
  /// was not written, or is complete, stays as it is.
  void complete(PageNumber page, ByteSpan content);

  [[nodiscard]] bool empty() const { return pages_.empty() && zeroes_.empty(); }
  /// With content: what fills memory. Zeroes take none.
  [[nodiscard]] std::size_t content_pages() const { return pages_.size(); }
  [[nodiscard]] std::uint64_t zero_pages() const { return zeroes_.pages(); }
  [[nodiscard]] const PageRanges& zeroes() const { return zeroes_; }
  /// The pages with content, in ascending order: what is written out goes on like a disk.
  [[nodiscard]] std::vector<PageNumber> pages() const;
  /// The content of one of pages(); sectors that are not known are zeroes in it.
  [[nodiscard]] ByteSpan content(PageNumber page) const;

 private:
  static constexpr unsigned kSectors = kPageBytes / kSectorBytes;
  static constexpr std::uint8_t kAll = 0xff;
  static_assert(kSectors == 8, "a page's known sectors are the bits of a byte");
  struct Page {
    std::unique_ptr<std::array<std::byte, kPageBytes>> content;
    std::uint8_t known{};
  };

  /// Calls part(page, first byte in it, bytes) for each page that the range touches.
  template <class Part>
  static void split(std::uint64_t offset, std::uint64_t bytes, const Part& part);
  [[nodiscard]] static std::uint8_t sectors(std::uint64_t first_byte, std::uint64_t bytes);
  /// The page with content, made of zeroes if it was such a page, of nothing known if it is new.
  [[nodiscard]] Page& page_for_change(std::uint64_t page);
  void zero_whole(PageRange range);
  /// What `page` does not know yet.
  static void fill(Page& page, ByteSpan content, std::uint8_t known);

  std::unordered_map<std::uint64_t, Page> pages_;
  PageRanges zeroes_;
};

}  // namespace vmshadow::capture
