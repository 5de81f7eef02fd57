#include "capture/machine_recorder.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <spdlog/spdlog.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <vector>

#include <vmshadow/machine.h>

#include "capture/qemu_process.h"
#include "qmp/commands.h"

namespace vmshadow::capture {
namespace {

std::vector<std::string> read_arguments(int pid) {
  std::vector<std::string> argv;
  std::ifstream file(fmt::format("/proc/{}/cmdline", pid), std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(file), {}};
  // Each argument ends in a NUL, the last one too.
  for (std::size_t at = 0; at < bytes.size();) {
    const std::size_t end = std::min(bytes.find('\0', at), bytes.size());
    argv.push_back(bytes.substr(at, end - at));
    at = end + 1;
  }
  return argv;
}

std::string read_directory(int pid) {
  std::error_code ignored;
  return std::filesystem::read_symlink(fmt::format("/proc/{}/cwd", pid), ignored).string();
}

}  // namespace

Result<std::string> record_machine(qmp::Session& session,
                                   const std::vector<qmp::WritableDisk>& disks) {
  VMSHADOW_ASSIGN(const qmp::MachineFacts facts, qmp::query_machine(session));
  const auto qemu = find_qemu_process(session);
  if (!qemu) {
    // Whoever opened the monitor's socket for QEMU: a proxy, a management daemon.
    spdlog::warn(
        "the process behind the monitor is not QEMU, or not to be seen: its command line is not "
        "recorded, a restore needs a QEMU that already waits");
  }
  qmp::Json json;
  json["qemu_version"] = facts.qemu_version;
  json["machine_type"] = facts.machine_type;
  json["accelerator"] = facts.kvm ? "kvm" : "tcg";
  json["ram_bytes"] = facts.ram_bytes;
  json["uuid"] = facts.uuid;
  json["name"] = facts.name;
  json["qemu_binary"] = qemu ? qemu->executable : std::string();
  json["argv"] = qemu ? read_arguments(qemu->pid) : std::vector<std::string>();
  json["cwd"] = qemu ? read_directory(qemu->pid) : std::string();
  for (const qmp::WritableDisk& disk : disks) {
    json["disks"].push_back({{"name", disk.name}, {"format", disk.format}, {"file", disk.file}});
  }
  // Arguments are bytes; what is not UTF-8 cannot stand in JSON and is replaced.
  std::string text = json.dump(2, ' ', false, qmp::Json::error_handler_t::replace);
  if (text.size() > kMachineTextBytesMax) {
    return fail(Errc::unsupported, fmt::format("QEMU's command line of {} bytes is over the limit "
                                               "of {}",
                                               text.size(), kMachineTextBytesMax));
  }
  return text;
}

}  // namespace vmshadow::capture
