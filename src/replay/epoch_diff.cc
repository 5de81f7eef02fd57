#include "replay/epoch_diff.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "base/hash.h"

namespace vmshadow::replay {
namespace {

constexpr std::uint64_t kDiffPagesPerReport = 1024;
/// Stands for a zero page; that a page's keyed hash is this has a chance of 2^-128.
constexpr PageHash kZeroHash{};

bool is_zero(const std::byte* page) {
  return page[0] == std::byte{} && std::memcmp(page, page + 1, kPageBytes - 1) == 0;
}

/// A block of both epochs; nullopt: that epoch lacks it.
struct BlockPair {
  std::string name;
  bool is_disk{};
  std::optional<BlockIndex> a;
  std::optional<BlockIndex> b;
  std::uint64_t pages_a{};
  std::uint64_t pages_b{};
};

std::vector<BlockPair> pair_blocks(const MachineDescription& a, const MachineDescription& b) {
  std::vector<BlockPair> pairs;
  for (std::size_t i = 0; i < a.block_count(); ++i) {
    const BlockIndex index{static_cast<std::uint16_t>(i)};
    const auto block = a.block(index);
    pairs.push_back({std::string(block.name), block.is_disk, index, {}, block.pages, 0});
  }
  for (std::size_t i = 0; i < b.block_count(); ++i) {
    const BlockIndex index{static_cast<std::uint16_t>(i)};
    const auto block = b.block(index);
    auto found = std::find_if(pairs.begin(), pairs.end(), [&](const BlockPair& p) {
      return p.name == block.name && p.is_disk == block.is_disk;
    });
    if (found == pairs.end()) {
      pairs.push_back({std::string(block.name), block.is_disk, {}, {}, 0, 0});
      found = std::prev(pairs.end());
    }
    found->b = index;
    found->pages_b = block.pages;
  }
  return pairs;
}

class Comparison {
 public:
  Comparison(const EpochImage& a, const EpochImage& b, PageHasher hasher,
             const DiffOptions& options)
      : a_(a), b_(b), hasher_(hasher), options_(options) {}

  Result<EpochDiff> run() {
    EpochDiff diff;
    diff.machine_differs = a_.machine() != b_.machine();
    VMSHADOW_TRY(compare_devices(diff));
    const auto pairs = pair_blocks(a_.machine(), b_.machine());
    for (const BlockPair& pair : pairs) pages_total_ += pair.pages_a + pair.pages_b;
    for (const BlockPair& pair : pairs) {
      VMSHADOW_ASSIGN(BlockDiff block, compare_block(pair));
      diff.blocks.push_back(std::move(block));
    }
    return diff;
  }

 private:
  Status compare_devices(EpochDiff& diff) const {
    VMSHADOW_ASSIGN(const auto a, a_.device_state());
    VMSHADOW_ASSIGN(const auto b, b_.device_state());
    diff.device_bytes_a = a.size();
    diff.device_bytes_b = b.size();
    const auto at = std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first;
    if (at != a.end() || a.size() != b.size()) {
      diff.device_differs_at = static_cast<std::uint64_t>(at - a.begin());
    }
    return {};
  }

  Status visit_block(const EpochImage& image, BlockIndex index, std::uint64_t pages,
                     const std::function<void(PageNumber, PageHash)>& take) {
    return image.for_each_page(index, [&](PageNumber page, const std::byte* data) -> Status {
      if (page.value >= pages) {
        return fail(Errc::corrupt, fmt::format("epoch {} holds page {} of '{}', which has {} pages",
                                               image.info().epoch.value, page.value,
                                               image.machine().block(index).name, pages));
      }
      take(page, data == nullptr || is_zero(data) ? kZeroHash : hasher_.hash(data));
      ++visited_;
      if (visited_ % kDiffPagesPerReport == 0) return report(pages_done_ + visited_);
      return {};
    });
  }

  /// Pages that were not visited are zero, and done as well.
  Status end_block(std::uint64_t pages) {
    visited_ = 0;
    pages_done_ += pages;
    return report(pages_done_);
  }

  [[nodiscard]] Status report(std::uint64_t done) const {
    return options_.on_progress ? options_.on_progress(std::min(done, pages_total_), pages_total_)
                                : Status{};
  }

  Result<BlockDiff> compare_block(const BlockPair& pair) {
    BlockDiff block;
    block.name = pair.name;
    block.is_disk = pair.is_disk;
    block.pages_a = pair.pages_a;
    block.pages_b = pair.pages_b;
    const std::uint64_t common = std::min(pair.pages_a, pair.pages_b);
    std::vector<PageHash> hashes(pair.a && pair.b ? pair.pages_a : 0, kZeroHash);
    std::vector<bool> differs(std::max(pair.pages_a, pair.pages_b), true);
    if (common != 0) {
      VMSHADOW_TRY(visit_block(a_, *pair.a, pair.pages_a,
                               [&](PageNumber page, PageHash hash) { hashes[page.value] = hash; }));
      VMSHADOW_TRY(end_block(pair.pages_a));
      for (std::uint64_t page = 0; page < common; ++page) {
        differs[page] =
            hashes[page] != kZeroHash;  // unless the second epoch's visit says otherwise
      }
      VMSHADOW_TRY(visit_block(b_, *pair.b, pair.pages_b, [&](PageNumber page, PageHash hash) {
        if (page.value < common) differs[page.value] = hash != hashes[page.value];
      }));
      VMSHADOW_TRY(end_block(pair.pages_b));
    }
    collect_ranges(differs, block);
    if (options_.count_bytes) VMSHADOW_TRY(count_bytes(pair, differs, common, block));
    return block;
  }

  void collect_ranges(const std::vector<bool>& differs, BlockDiff& block) const {
    for (std::uint64_t page = 0; page < differs.size();) {
      if (!differs[page]) {
        ++page;
        continue;
      }
      const std::uint64_t first = page;
      while (page < differs.size() && differs[page]) ++page;
      block.pages_differing += page - first;
      ++block.ranges_total;
      if (block.ranges.size() < options_.ranges_max) {
        block.ranges.push_back({PageNumber{first}, page - first});
      }
    }
  }

  Status count_bytes(const BlockPair& pair, const std::vector<bool>& differs, std::uint64_t common,
                     BlockDiff& block) const {
    std::array<std::byte, kPageBytes> page_a;
    std::array<std::byte, kPageBytes> page_b;
    std::uint64_t bytes = 0;
    for (std::uint64_t page = 0; page < common; ++page) {
      if (!differs[page]) continue;
      VMSHADOW_TRY(a_.read_page(*pair.a, PageNumber{page}, page_a));
      VMSHADOW_TRY(b_.read_page(*pair.b, PageNumber{page}, page_b));
      for (std::size_t i = 0; i < kPageBytes; ++i) bytes += page_a[i] != page_b[i] ? 1 : 0;
      if (page % kDiffPagesPerReport == 0) VMSHADOW_TRY(report(pages_done_));
    }
    block.bytes_differing = bytes;
    return {};
  }

  const EpochImage& a_;
  const EpochImage& b_;
  const PageHasher hasher_;
  const DiffOptions& options_;
  std::uint64_t pages_total_ = 0;
  std::uint64_t pages_done_ = 0;
  std::uint64_t visited_ = 0;  ///< of the block being read
};

}  // namespace

std::uint64_t EpochDiff::pages_differing() const {
  std::uint64_t sum = 0;
  for (const BlockDiff& block : blocks) sum += block.pages_differing;
  return sum;
}

bool EpochDiff::same() const {
  return pages_differing() == 0 && !device_differs_at && !machine_differs;
}

Result<EpochDiff> diff_epochs(const EpochImage& a, const EpochImage& b,
                              const DiffOptions& options) {
  VMSHADOW_ASSIGN(const PageHasher hasher, PageHasher::create());
  return Comparison(a, b, hasher, options).run();
}

}  // namespace vmshadow::replay
