// The seam between the NBD server and what stands behind an export: a disk that is being protected
// (its guest writes it), or one of an epoch (it is read).
#pragma once

#include <cstdint>
#include <vector>

#include <vmshadow/result.h>
#include <vmshadow/types.h>

namespace vmshadow {

/// A run of bytes of one kind.
struct BlockExtent {
  std::uint64_t bytes{};
  bool hole = false;    ///< takes no room
  bool zeroes = false;  ///< reads as zeroes
  bool operator==(const BlockExtent&) const = default;
};

/// Called by several threads at once. Every range is within bytes(), aligned to block_bytes() and
/// not empty: the caller has checked. What may be the fault of whoever asked is answered with
/// Errc::no_space, ::permission or
/// ::unsupported; anything else reaches the guest as an I/O error.
class BlockDevice {
 public:
  virtual ~BlockDevice() = default;

  [[nodiscard]] virtual std::uint64_t bytes() const = 0;
  /// Every range is a multiple of it: a power of two.
  [[nodiscard]] virtual std::uint32_t block_bytes() const { return 1; }
  /// Then nothing is called that changes it.
  [[nodiscard]] virtual bool read_only() const = 0;
  [[nodiscard]] virtual Status read(std::uint64_t offset, MutableByteSpan into) = 0;
  [[nodiscard]] virtual Status write(std::uint64_t offset, ByteSpan from) = 0;
  /// `may_unmap`: the range may become a hole. In any case it reads as zeroes.
  [[nodiscard]] virtual Status write_zeroes(std::uint64_t offset, std::uint64_t bytes,
                                            bool may_unmap) = 0;
  /// The range is no longer needed; what it reads as is up to the device.
  [[nodiscard]] virtual Status trim(std::uint64_t offset, std::uint64_t bytes) = 0;
  /// What was written by any thread before is as durable as this device makes it.
  [[nodiscard]] virtual Status flush() = 0;
  /// What the range consists of, from `offset` on: at least one extent, of `bytes` together at
  /// most; less than that is allowed.
  [[nodiscard]] virtual Result<std::vector<BlockExtent>> extents(std::uint64_t offset,
                                                                 std::uint64_t bytes) {
    static_cast<void>(offset);
    return std::vector<BlockExtent>{{bytes, false, false}};
  }
};

}  // namespace vmshadow
