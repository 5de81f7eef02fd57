// The directories a store spreads its segments over, and how fast their devices are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace vmshadow::store {

enum class TierKind : std::uint8_t {
  ssd,  ///< the journal, and what is rewritten or read often
  hdd,  ///< what rests; written in large pieces
};
[[nodiscard]] constexpr std::string_view tier_kind_name(TierKind kind) {
  return kind == TierKind::ssd ? "ssd" : "hdd";
}

struct TierDirectory {
  TierKind kind{};
  std::string path;
  /// What its segments may take; 0: as much as the file system has.
  std::uint64_t capacity_bytes{};
};

/// A tier directory's place in its store's list.
using TierIndex = std::size_t;

}  // namespace vmshadow::store
