// The model of one VM's page versions: what each epoch must read back as, and which versions the
// kept epochs still need.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include <vmshadow/shadow_reader.h>

#include "support/made_epochs.h"

namespace vmshadow::bench {

class VersionHistory {
 public:
  VersionHistory(std::uint64_t vm_pages, const GroupPool& pool)
      : versions_(vm_pages), pool_(pool) {}

  /// Epochs come in rising order.
  void add(Epoch epoch, const EpochPlan& plan);
  /// Bytes of records that the pages of the `kept` epochs (rising) need, a page counting as its
  /// share of the record it came in.
  [[nodiscard]] double live_bytes(std::span<const EpochInfo> kept) const;
  /// Errc::corrupt if the image of `epoch` is not what was shipped.
  [[nodiscard]] Status check(const EpochImage& image, Epoch epoch) const;

 private:
  struct Version {
    std::uint32_t epoch{};
    std::uint32_t group{};
    std::uint32_t slot{};
  };
  std::vector<std::vector<Version>> versions_;  ///< by page, rising
  const GroupPool& pool_;
};

}  // namespace vmshadow::bench
