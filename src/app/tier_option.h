// Reads sizes, and --ssd and --hdd. Pure.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include <vmshadow/result.h>

#include "store/tier.h"

namespace vmshadow::app {

/// Bytes: a number above 0 with K, M, G or T (of 1024) behind it; nullopt: it is none.
[[nodiscard]] std::optional<std::uint64_t> parse_size(std::string_view text);
/// "PATH" or "PATH:SIZE", SIZE as parse_size() has it. The path is made
/// absolute. Errc::invalid_argument.
[[nodiscard]] Result<store::TierDirectory> parse_tier(store::TierKind kind,
                                                      const std::string& text);

}  // namespace vmshadow::app
