// An epoch's disks as files that a QEMU can run on.
#pragma once

#include <string>
#include <vector>

#include <vmshadow/result.h>
#include <vmshadow/shadow_reader.h>

#include "replay/exporter.h"
#include "replay/qemu_command.h"

namespace vmshadow::replay {

/// Writes each disk of `image` to `folder`, which is made if it is not there: NAME.img, raw and
/// sparse, and where the VM had an image of another format NAME.FORMAT on top of it (qemu-img makes
/// that). Returns what stands for which file of the recorded command line. Errc::already_exists if
/// one of them does: nothing is overwritten. On an error files may be left that it names or made.
[[nodiscard]] Result<std::vector<Replacement>> write_disk_images(const EpochImage& image,
                                                                 const std::string& folder,
                                                                 const ExportOptions& options = {});

}  // namespace vmshadow::replay
