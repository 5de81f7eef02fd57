// Reads --ssd and --hdd. Pure.
#pragma once

#include <string>

#include <vmshadow/result.h>

#include "store/tier.h"

namespace vmshadow::app {

/// "PATH" or "PATH:SIZE", SIZE as parse_size() has it. The path is made
/// absolute. Errc::invalid_argument.
[[nodiscard]] Result<store::TierDirectory> parse_tier(store::TierKind kind,
                                                      const std::string& text);

}  // namespace vmshadow::app
