// A running VM's disk as it is now, to be read beside the guest.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <vmshadow/result.h>
#include <vmshadow/types.h>

#include "base/unique_fd.h"

namespace vmshadow::capture {

/// Used by one thread at a time; close() by any.
class DiskContent {
 public:
  virtual ~DiskContent() = default;
  /// Reads each page whole into its place; what lies past the disk's end is zeroes.
  [[nodiscard]] virtual Status read(std::span<const PageNumber> pages,
                                    std::span<std::byte> contents) = 0;
  /// A read() that waits ends with an error, and so does each one after it.
  virtual void close() = 0;
};

/// Through an NBD export, over a connected socket. Errc::protocol if it is not of `disk_bytes`.
[[nodiscard]] Result<std::unique_ptr<DiskContent>> open_export(UniqueFd connection,
                                                               const std::string& export_name,
                                                               std::uint64_t disk_bytes);
/// The raw image at `path`, by the very file that process `qemu_pid` has open: as QEMU reads it,
/// with or without the host's page cache. Errc::not_found if that process has no such file open.
[[nodiscard]] Result<std::unique_ptr<DiskContent>> open_raw_image(int qemu_pid,
                                                                  const std::string& path,
                                                                  std::uint64_t disk_bytes);

}  // namespace vmshadow::capture
