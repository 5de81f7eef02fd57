#include "app/tier_option.h"

#include <fmt/format.h>

#include <filesystem>
#include <string_view>

#include "app/byte_size.h"

namespace vmshadow::app {

Result<store::TierDirectory> parse_tier(store::TierKind kind, const std::string& text) {
  store::TierDirectory tier;
  tier.kind = kind;
  std::string path = text;
  if (const std::size_t colon = text.rfind(':'); colon != std::string::npos) {
    const auto size = parse_size(std::string_view(text).substr(colon + 1));
    if (!size) {
      return fail(Errc::invalid_argument,
                  fmt::format("--{} '{}': behind the colon belongs a size such as 200G",
                              store::tier_kind_name(kind), text));
    }
    tier.capacity_bytes = *size;
    path = text.substr(0, colon);
  }
  if (path.empty() || path.find('\n') != std::string::npos) {
    return fail(Errc::invalid_argument,
                fmt::format("--{} needs a directory, not '{}'", store::tier_kind_name(kind), text));
  }
  std::error_code error;
  const auto absolute = std::filesystem::absolute(path, error).lexically_normal();
  if (error) {
    return fail(Errc::invalid_argument,
                fmt::format("--{} '{}': {}", store::tier_kind_name(kind), text, error.message()));
  }
  tier.path = absolute.string();
  while (tier.path.size() > 1 && tier.path.back() == '/') tier.path.pop_back();
  return tier;
}

}  // namespace vmshadow::app
