// The guest's RAM as QEMU itself sees it, by pmemsave through a monitor of the test's own, compared
// page for page with an image of block "pc.ram". While the guest stands still at a cut, nothing
// proves a capture better.
//
// On the `pc` machine, below the PCI hole, guest addresses 0 to 640 KiB and from 1 MiB on are
// offsets in pc.ram; what lies between is other memory in part, and is left out.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <vmshadow/result.h>
#include <vmshadow/types.h>

#include "qmp/session.h"

namespace vmshadow::test {

struct RamComparison {
  std::uint64_t pages{};  ///< compared
  std::uint64_t stale{};  ///< pages that differ
  std::optional<PageNumber> first_stale;
  void add(const RamComparison& other);
};

/// Compares two stretches of RAM of the same length, whole pages; `first` is their first page.
[[nodiscard]] RamComparison compare_ram(ByteSpan image, ByteSpan ram, PageNumber first);

class RamOracle {
 public:
  /// `observer_path`: a monitor that nobody else uses.
  [[nodiscard]] static Result<std::unique_ptr<RamOracle>> connect(const std::string& observer_path);
  ~RamOracle();
  RamOracle(const RamOracle&) = delete;
  RamOracle& operator=(const RamOracle&) = delete;

  /// Takes the stopped guest's RAM and compares. `image` is all of pc.ram.
  [[nodiscard]] Result<RamComparison> compare(ByteSpan image);
  /// Compares with the RAM as it was taken last.
  [[nodiscard]] RamComparison compare_again(ByteSpan image) const;
  [[nodiscard]] qmp::Session& monitor() { return *monitor_; }

 private:
  explicit RamOracle(std::unique_ptr<qmp::Session> monitor) : monitor_(std::move(monitor)) {}

  std::unique_ptr<qmp::Session> monitor_;
  std::string path_;  // in memory-backed /dev/shm where there is one
  std::vector<std::byte> low_;
  std::vector<std::byte> high_;
};

}  // namespace vmshadow::test
