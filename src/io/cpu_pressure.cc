#include "io/cpu_pressure.h"

#include <charconv>

#include "io/file.h"

namespace vmshadow::io {

std::optional<double> parse_some_avg10(std::string_view text) {
  constexpr std::string_view kStart = "some avg10=";
  const auto at = text.find(kStart);
  // At the start of a line: `full` has its own averages.
  if (at == std::string_view::npos || (at != 0 && text[at - 1] != '\n')) return std::nullopt;
  text.remove_prefix(at + kStart.size());
  double percent = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), percent);
  if (error != std::errc{} || !(percent >= 0 && percent <= 100)) return std::nullopt;
  return percent;
}

std::optional<double> cpu_pressure(const std::string& path) {
  constexpr std::size_t kBytesMax = 4096;
  const auto text = read_small_file(path, kBytesMax);
  return text ? parse_some_avg10(*text) : std::nullopt;
}

}  // namespace vmshadow::io
