// The Linux witness's arena: pages with content of chosen compressibility, and the check of each.
//
// A page is whole if its frame says where it belongs and which write made it, its checksum covers
// every byte, and the table agrees about the write: the table is what finds a page that is intact
// but stale. Pure memory: the unit tests drive it without any guest.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "guest/witness_layout.h"

namespace vmshadow::witness {

enum class Content {
  real,  ///< a mixture of text, heap objects, code, sparse and random pages: about 2.4:1 by lz4
  compressible,  ///< text alone
  random,        ///< does not compress
};
[[nodiscard]] std::optional<Content> content_named(std::string_view name);

enum class Pattern { uniform, hot, sequential };
[[nodiscard]] std::optional<Pattern> pattern_named(std::string_view name);

/// xorshift64*: small, fast under emulation, good enough to choose pages.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed != 0 ? seed : 1) {}
  std::uint64_t next() {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return state_ * 0x2545f4914f6cdd1dU;
  }
  /// 0 to limit-1; `limit` below 2^32.
  std::uint64_t below(std::uint64_t limit) { return (next() >> 32) * limit >> 32; }

 private:
  std::uint64_t state_;
};

/// Which page is written next.
class PageChooser {
 public:
  struct Options {
    Pattern pattern = Pattern::uniform;
    unsigned hot_percent = 90;      ///< share of the writes that goes to the hot set
    unsigned hot_set_percent = 10;  ///< the hot set's share of the arena
  };
  PageChooser(Options options, std::uint64_t arena_pages);
  [[nodiscard]] std::uint64_t next(Random& random);

 private:
  Options options_;
  std::uint64_t arena_pages_;
  std::uint64_t hot_pages_;
  std::uint64_t next_ = 0;
};

/// Material that pages are cut from: `pages` pages of `content`, the same for the same seed.
[[nodiscard]] std::vector<std::uint8_t> make_content(Content content, std::size_t pages,
                                                     std::uint64_t seed);

class Arena {
 public:
  /// Borrows `pages` and `table` (one entry a page), which must outlive the arena. `change_bytes`:
  /// how much of a page's content one write replaces (0: all of it).
  Arena(std::span<ArenaPage> pages, std::span<std::uint32_t> table,
        std::span<const std::uint8_t> nonce, Content content, std::size_t change_bytes);

  [[nodiscard]] std::uint64_t pages() const { return pages_.size(); }
  /// Gives every page its first content.
  void fill(std::uint64_t& sequence, Random& random);
  /// A write: new bytes, new sequence (the one passed), new checksum.
  void write(std::uint64_t index, std::uint64_t sequence, Random& random);
  /// Dirties the page without changing it.
  void rewrite_same(std::uint64_t index);
  [[nodiscard]] bool is_whole(std::uint64_t index) const;

 private:
  void seal(std::uint64_t index, std::uint64_t sequence);
  [[nodiscard]] std::uint64_t check_of(const ArenaPage& page) const;

  std::span<ArenaPage> pages_;
  std::span<std::uint32_t> table_;
  std::uint32_t nonce_frame_{};
  std::uint64_t nonce_seed_{};
  std::size_t change_bytes_;
  std::vector<std::uint8_t> material_;
};

}  // namespace vmshadow::witness
