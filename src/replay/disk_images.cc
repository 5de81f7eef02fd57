#include "replay/disk_images.h"

#include <fmt/format.h>

#include <chrono>
#include <filesystem>
#include <system_error>
#include <thread>

#include "replay/machine_record.h"
#include "replay/qemu_launcher.h"

namespace vmshadow::replay {
namespace {

/// Runs qemu-img to its end.
Status run_qemu_img(std::vector<std::string> arguments, const std::string& log_path) {
  QemuCommand command;
  command.argv = std::move(arguments);
  command.argv.insert(command.argv.begin(), "qemu-img");
  VMSHADOW_ASSIGN(QemuProcess process, QemuProcess::start(command, log_path));
  std::optional<std::string> ended;
  while (!(ended = process.ended())) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  const std::string said = process.log_tail();
  std::error_code ignored;
  std::filesystem::remove(log_path, ignored);
  if (*ended == "exited with status 0") return {};
  return fail(Errc::io, fmt::format("qemu-img {}: {}", *ended, said));
}

Status make_folder(const std::string& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) return fail_errno(error.value(), "making the folder " + folder);
  return {};
}

}  // namespace

Result<std::vector<Replacement>> write_disk_images(const EpochImage& image,
                                                   const std::string& folder,
                                                   const ExportOptions& options) {
  const MachineDescription& machine = image.machine();
  VMSHADOW_ASSIGN(const MachineRecord record, parse_machine_record(machine.json));
  if (record.disks.size() != machine.disks.size()) {
    return fail(Errc::unsupported, "the epoch does not tell which images its disks had");
  }
  VMSHADOW_TRY(make_folder(folder));
  const std::string place = std::filesystem::absolute(folder).string();
  std::vector<Replacement> images;
  for (std::size_t i = 0; i < machine.disks.size(); ++i) {
    const BlockIndex index{static_cast<std::uint16_t>(machine.layout.blocks.size() + i)};
    const std::string raw = fmt::format("{}/{}", place, file_name_of_block(machine.block(index)));
    VMSHADOW_TRY(export_disk(image, index, raw, options));
    const MachineRecord::Disk& disk = record.disks[i];
    std::string path = raw;
    if (disk.format != "raw") {
      path = std::filesystem::path(raw).replace_extension(disk.format).string();
      if (std::filesystem::exists(path)) {
        return fail(Errc::already_exists, fmt::format("{} exists: choose another folder", path));
      }
      VMSHADOW_TRY(run_qemu_img({"create", "-q", "-f", disk.format, "-F", "raw", "-b", raw, path},
                                place + "/qemu-img.log"));
    }
    images.push_back({disk.file, path});
  }
  return images;
}

}  // namespace vmshadow::replay
