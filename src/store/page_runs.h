// Runs of consecutive pages, as one number a page (PageTable's page keys), and which of several
// that overlap counts: that of the highest rank. Pure.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace vmshadow::store {

struct PageRun {
  std::uint64_t first{};
  std::uint64_t count{};
  [[nodiscard]] std::uint64_t end() const { return first + count; }
  bool operator==(const PageRun&) const = default;
};

struct RankedRun {
  PageRun run;
  std::uint32_t rank{};
};

/// The same pages as disjoint rising runs, each with the highest rank of those that cover it.
/// n log n; only one pass if they are so already.
[[nodiscard]] std::vector<RankedRun> flatten(std::vector<RankedRun> runs);

/// What is left of flattened runs without the pages in `keys` (rising; `key >> key_shift` is the
/// page): disjoint, rising, and joined where they meet, but not across multiples of `block_pages`.
[[nodiscard]] std::vector<PageRun> subtract(std::span<const RankedRun> flat,
                                            std::span<const std::uint64_t> keys, unsigned key_shift,
                                            std::uint64_t block_pages);

}  // namespace vmshadow::store
