// What differs between two epochs of a VM, page for page. Pure.
//
// The first epoch's pages are kept as 16-byte hashes (1/256 of the largest RAM block), the second's
// are compared as they are visited: both are read once, in the order that is cheapest to read.
// Which bytes inside a page changed needs both contents, so that is asked for apart, and reads the
// differing pages one by one.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include <vmshadow/result.h>
#include <vmshadow/shadow_reader.h>

namespace vmshadow::replay {

struct PageRange {
  PageNumber first;
  std::uint64_t count{};
  bool operator==(const PageRange&) const = default;
};

/// A RAM block or disk of either epoch, by name. One that an epoch lacks has 0 pages there; pages
/// beyond the shorter one's end all count as differing.
struct BlockDiff {
  std::string name;
  bool is_disk{};
  std::uint64_t pages_a{};
  std::uint64_t pages_b{};
  std::uint64_t pages_differing{};
  std::optional<std::uint64_t> bytes_differing;  ///< if counted; in pages that both have
  std::vector<PageRange> ranges;                 ///< rising, at most DiffOptions::ranges_max
  std::uint64_t ranges_total{};
};

struct EpochDiff {
  std::vector<BlockDiff> blocks;  ///< those of the first epoch in its order, then the second's own
  bool machine_differs{};         ///< description, configuration, RAM layout or disks
  std::uint64_t device_bytes_a{};
  std::uint64_t device_bytes_b{};
  /// Offset of the first byte of device state that differs (or that one alone has).
  std::optional<std::uint64_t> device_differs_at;

  [[nodiscard]] std::uint64_t pages_differing() const;
  [[nodiscard]] bool same() const;
};

struct DiffOptions {
  bool count_bytes = false;
  std::size_t ranges_max = SIZE_MAX;  ///< per block
  /// May be empty. Called now and then; an error stops the comparison and is returned.
  std::function<Status(std::uint64_t pages_done, std::uint64_t pages_total)> on_progress;
};

/// Errors: the images'; Errc::corrupt if an image holds a page outside its block.
[[nodiscard]] Result<EpochDiff> diff_epochs(const EpochImage& a, const EpochImage& b,
                                            const DiffOptions& options = {});

}  // namespace vmshadow::replay
