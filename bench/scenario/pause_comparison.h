// Whether the pauses under two secondaries may be compared, and how they do: pure.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace vmshadow::bench {

/// One of the two, with a figure for each round that both have; the rounds are interleaved.
struct PauseSide {
  std::string name;                     ///< as a reader knows it: "the floor"
  std::vector<double> pause_ms;         ///< medians
  std::vector<double> pages_per_epoch;  ///< medians of what the guest changed
};

struct PauseComparison {
  std::optional<double> ratio;  ///< the median over rounds of ours / theirs
  std::string why_not;          ///< in words, where there is none
};

/// A pause grows with the pages of an epoch. So where the guest changed other amounts under one
/// than under the other, a ratio would compare the amounts: this far apart at most.
inline constexpr double kPagesApartMax = 0.10;

/// No ratio from fewer than kPairsMin rounds, nor where the sides' pages, each the median over its
/// rounds, are more than kPagesApartMax of the larger one apart.
[[nodiscard]] PauseComparison compare_pauses(PauseSide ours, PauseSide theirs);

/// Why the amounts forbid a comparison; nullopt if they do not.
[[nodiscard]] std::optional<std::string> unlike_amounts(const PauseSide& ours,
                                                        const PauseSide& theirs);

}  // namespace vmshadow::bench
