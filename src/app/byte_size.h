// Sizes as people write and read them. Pure.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace vmshadow::app {

/// Bytes: a number above 0 with K, M, G or T (of 1024) behind it; nullopt: it is none.
[[nodiscard]] std::optional<std::uint64_t> parse_size(std::string_view text);
/// "12.3 GiB"
[[nodiscard]] std::string size_text(std::uint64_t bytes);

}  // namespace vmshadow::app
