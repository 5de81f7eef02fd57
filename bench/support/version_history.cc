#include "support/version_history.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "format/record.h"

namespace vmshadow::bench {

void VersionHistory::add(Epoch epoch, const EpochPlan& plan) {
  for (std::size_t i = 0; i < plan.pages.size(); ++i) {
    versions_[plan.pages[i]].push_back({static_cast<std::uint32_t>(epoch.value),
                                        plan.groups[i / format::kGroupPagesMax],
                                        static_cast<std::uint32_t>(i % format::kGroupPagesMax)});
  }
}

double VersionHistory::live_bytes(std::span<const EpochInfo> kept) const {
  double bytes = 0;
  for (const auto& versions : versions_) {
    for (std::size_t i = 0; i < versions.size(); ++i) {
      // Needed by the first kept epoch from it on, if that comes before the next version.
      const auto first = std::lower_bound(
          kept.begin(), kept.end(), versions[i].epoch,
          [](const EpochInfo& info, std::uint32_t epoch) { return info.epoch.value < epoch; });
      if (first == kept.end()) break;
      if (i + 1 < versions.size() && first->epoch.value >= versions[i + 1].epoch) continue;
      bytes +=
          static_cast<double>(pool_.body(versions[i].group).size() + format::kRecordPrefixBytes) /
          static_cast<double>(format::kGroupPagesMax);
    }
  }
  return bytes;
}

Status VersionHistory::check(const EpochImage& image, Epoch epoch) const {
  std::uint64_t visited = 0;
  const auto wrong = [&](PageNumber page) {
    return fail(Errc::corrupt, fmt::format("page {} of epoch {} is not what was shipped",
                                           page.value, epoch.value));
  };
  VMSHADOW_TRY(
      image.for_each_page(BlockIndex{0}, [&](PageNumber page, const std::byte* data) -> Status {
        ++visited;
        const auto& versions = versions_[page.value];
        const auto next = std::upper_bound(
            versions.begin(), versions.end(), epoch.value,
            [](std::uint64_t wanted, const Version& version) { return wanted < version.epoch; });
        if (next == versions.begin() || data == nullptr) return wrong(page);
        const Version& version = *std::prev(next);
        if (std::memcmp(data, pool_.page(version.group, version.slot).data(), kPageBytes) != 0) {
          return wrong(page);
        }
        return {};
      }));
  if (visited == versions_.size()) return {};
  return fail(Errc::corrupt,
              fmt::format("epoch {} has {} pages of {}", epoch.value, visited, versions_.size()));
}

}  // namespace vmshadow::bench
