// Guest pages to measure with, reproducible from a seed. None of them is all zero.
//
//   realistic      what a busy guest's changed pages look like to lz4: about 2.4:1 in 64 KiB blocks
//   compressible   text-like, about 3.8:1
//   random         encrypted or already compressed data: 1:1
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include <vmshadow/page_sink.h>

namespace vmshadow::bench {

enum class PageKind : std::uint8_t { realistic, compressible, random };
[[nodiscard]] std::string_view page_kind_name(PageKind kind);
[[nodiscard]] std::optional<PageKind> parse_page_kind(std::string_view name);

class PageCorpus {
 public:
  PageCorpus(PageKind kind, std::size_t pages, std::uint64_t seed);
  [[nodiscard]] std::size_t pages() const { return bytes_.size() / kPageBytes; }
  [[nodiscard]] ByteSpan bytes() const { return bytes_; }
  /// All pages, numbered from 0 in block 0. Points into this object.
  [[nodiscard]] PageBatch batch() const;

 private:
  std::vector<std::byte> bytes_;
};

/// A machine whose one RAM block has `pages` pages.
[[nodiscard]] MachineDescription machine_with_pages(std::size_t pages);

}  // namespace vmshadow::bench
