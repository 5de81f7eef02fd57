// An epoch's disks as files that a QEMU can run on.
#pragma once

#include <string>
#include <vector>

#include <vmshadow/result.h>
#include <vmshadow/shadow_reader.h>

#include "replay/exporter.h"
#include "replay/qemu_command.h"

namespace vmshadow::replay {

/// The file that stands for a disk.
struct DiskImage {
  BlockIndex disk;
  std::string format;   ///< "raw", or what qemu-img calls it
  Replacement instead;  ///< of the file that the recorded command line names
};

/// Which files in `folder` an epoch's disks would become: NAME.img for a raw one, else NAME.FORMAT.
/// Makes nothing. Errc::already_exists if one is there; Errc::unsupported: the epoch does not tell
/// of its images, or one has a form that cannot be made.
[[nodiscard]] Result<std::vector<DiskImage>> plan_disk_images(const EpochImage& image,
                                                              const std::string& folder);
/// Writes them, sparse; the folder is made if it is not there. Nothing is overwritten. On an error
/// those that are whole are left.
[[nodiscard]] Status write_disk_images(const EpochImage& image,
                                       const std::vector<DiskImage>& images,
                                       const ExportOptions& options = {});

}  // namespace vmshadow::replay
