#include "app/byte_size.h"

#include <fmt/format.h>

#include <array>
#include <charconv>

namespace vmshadow::app {

std::optional<std::uint64_t> parse_size(std::string_view text) {
  if (text.empty()) return std::nullopt;
  constexpr std::string_view units = "KMGT";
  const std::size_t unit = units.find(text.back());
  if (unit == std::string_view::npos) return std::nullopt;
  text.remove_suffix(1);
  std::uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  const unsigned shift = 10 * (static_cast<unsigned>(unit) + 1);
  if (error != std::errc{} || end != text.data() + text.size() || number == 0 ||
      number > UINT64_MAX >> shift) {
    return std::nullopt;
  }
  return number << shift;
}

std::string size_text(std::uint64_t bytes) {
  constexpr std::array units = {"B", "KiB", "MiB", "GiB", "TiB"};
  auto size = static_cast<double>(bytes);
  std::size_t unit = 0;
  for (; size >= 1024 && unit + 1 < units.size(); ++unit) size /= 1024;
  return fmt::format("{:.{}f} {}", size, unit == 0 ? 0 : 1, units[unit]);
}

}  // namespace vmshadow::app
