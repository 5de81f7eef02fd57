#include "scenario/pause_comparison.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/statistics.h"
#include "scenario/report.h"

namespace vmshadow::bench {

std::optional<std::string> unlike_amounts(const PauseSide& ours, const PauseSide& theirs) {
  if (ours.pages_per_epoch.empty() || theirs.pages_per_epoch.empty()) {
    return fmt::format("what the guest wrote under {} is not known",
                       ours.pages_per_epoch.empty() ? ours.name : theirs.name);
  }
  const double a = quantile(ours.pages_per_epoch, 0.5);
  const double b = quantile(theirs.pages_per_epoch, 0.5);
  if (std::max(a, b) - std::min(a, b) <= kPagesApartMax * std::max(a, b)) return std::nullopt;
  return fmt::format(
      "the guest wrote {:.0f} pages per epoch under {} and {:.0f} under {}: more than {:.0f} % "
      "apart",
      a, ours.name, b, theirs.name, 100 * kPagesApartMax);
}

PauseComparison compare_pauses(PauseSide ours, PauseSide theirs) {
  const std::size_t rounds = std::min(ours.pause_ms.size(), theirs.pause_ms.size());
  if (rounds < kPairsMin) return {std::nullopt, fmt::format("fewer than {} rounds", kPairsMin)};
  if (auto why = unlike_amounts(ours, theirs)) return {std::nullopt, *std::move(why)};
  ours.pause_ms.resize(rounds);
  theirs.pause_ms.resize(rounds);
  return {median_ratio(ours.pause_ms, theirs.pause_ms), {}};
}

}  // namespace vmshadow::bench
