#include "replay/disk_images.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <filesystem>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>

#include "replay/machine_record.h"
#include "replay/qemu_launcher.h"

namespace vmshadow::replay {
namespace {

/// Formats with a head of their own, which qemu-img makes of a raw image.
constexpr std::array<std::string_view, 7> kMadeByQemuImg = {"qcow2", "qed", "vmdk",     "vdi",
                                                            "vhdx",  "vpc", "parallels"};

bool is_made_by_qemu_img(const std::string& format) {
  return std::find(kMadeByQemuImg.begin(), kMadeByQemuImg.end(), format) != kMadeByQemuImg.end();
}

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

/// A base that the command line gives an image would show through a new one. (`"backing":null` says
/// that there is none.)
Status refuse_bases(const MachineRecord& record) {
  for (const std::string& argument : record.argv) {
    for (const std::string_view named : {"\"backing\":\"", "\"backing\":{", "\"backing\": \"",
                                         "\"backing\": {", "backing=", "backing.", "\"backing."}) {
      if (argument.find(named) == std::string::npos) continue;
      return fail(Errc::unsupported,
                  fmt::format("the recorded command line gives a disk its base image: '{}'; write "
                              "the disks with export, and start QEMU yourself (--qmp)",
                              argument));
    }
  }
  return {};
}

}  // namespace

Result<std::vector<DiskImage>> plan_disk_images(const EpochImage& image,
                                                const std::string& folder) {
  const MachineDescription& machine = image.machine();
  VMSHADOW_ASSIGN(const MachineRecord record, parse_machine_record(machine.json));
  if (record.disks.size() != machine.disks.size()) {
    return fail(Errc::unsupported, "the epoch does not tell which images its disks had");
  }
  const std::string place = std::filesystem::absolute(folder).string();
  std::vector<DiskImage> images;
  for (std::size_t i = 0; i < machine.disks.size(); ++i) {
    const MachineRecord::Disk& disk = record.disks[i];
    if (disk.format == "luks") {
      return fail(Errc::unsupported, fmt::format("disk '{}' had an encrypted image (luks), which "
                                                 "is not made again: write it with export",
                                                 disk.name));
    }
    DiskImage one;
    one.disk = BlockIndex{static_cast<std::uint16_t>(machine.layout.blocks.size() + i)};
    one.format = is_made_by_qemu_img(disk.format) ? disk.format : "raw";
    if (one.format != "raw") VMSHADOW_TRY(refuse_bases(record));
    std::filesystem::path path =
        fmt::format("{}/{}", place, file_name_of_block(machine.block(one.disk)));
    if (one.format != "raw") path.replace_extension(one.format);
    if (std::filesystem::exists(path)) {
      return fail(Errc::already_exists,
                  fmt::format("{} exists: choose another folder", path.string()));
    }
    one.instead = {disk.file, path.string()};
    images.push_back(std::move(one));
  }
  return images;
}

Status write_disk_images(const EpochImage& image, const std::vector<DiskImage>& images,
                         const ExportOptions& options) {
  for (const DiskImage& one : images) {
    const std::string& path = one.instead.to;
    VMSHADOW_TRY(make_folder(std::filesystem::path(path).parent_path().string()));
    if (one.format == "raw") {
      VMSHADOW_TRY(export_disk(image, one.disk, path, options));
      continue;
    }
    const std::string raw = path + ".raw";
    VMSHADOW_TRY(export_disk(image, one.disk, raw, options));
    const Status made =
        run_qemu_img({"convert", "-f", "raw", "-O", one.format, raw, path}, path + ".log");
    std::error_code ignored;
    std::filesystem::remove(raw, ignored);
    VMSHADOW_TRY(made);
  }
  return {};
}

}  // namespace vmshadow::replay
