#include "capture/machine_recorder.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <spdlog/spdlog.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <vector>

#include <vmshadow/machine.h>

#include "qmp/commands.h"

namespace vmshadow::capture {
namespace {

struct ProcessStart {
  std::vector<std::string> argv;
  std::string executable;
  std::string cwd;
};

ProcessStart read_process_start(int pid) {
  ProcessStart start;
  const std::filesystem::path proc = fmt::format("/proc/{}", pid);
  std::ifstream file(proc / "cmdline", std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(file), {}};
  // Each argument ends in a NUL, the last one too.
  for (std::size_t at = 0; at < bytes.size();) {
    const std::size_t end = std::min(bytes.find('\0', at), bytes.size());
    start.argv.push_back(bytes.substr(at, end - at));
    at = end + 1;
  }
  std::error_code ignored;
  start.executable = std::filesystem::read_symlink(proc / "exe", ignored).string();
  start.cwd = std::filesystem::read_symlink(proc / "cwd", ignored).string();
  return start;
}

bool is_qemu(const std::string& executable) {
  const std::string name = std::filesystem::path(executable).filename().string();
  return name.rfind("qemu", 0) == 0 || name == "kvm";
}

}  // namespace

Result<std::string> record_machine(qmp::Session& session) {
  VMSHADOW_ASSIGN(const qmp::MachineFacts facts, qmp::query_machine(session));
  ProcessStart start;
  if (const auto pid = session.peer_pid()) start = read_process_start(*pid);
  if (!is_qemu(start.executable)) {
    // Whoever opened the monitor's socket for QEMU: a proxy, a management daemon.
    spdlog::warn(
        "the process behind the monitor is not QEMU ({}): its command line is not recorded, "
        "a restore needs a QEMU that already waits",
        start.executable.empty() ? "unreadable" : start.executable);
    start = {};
  }
  qmp::Json json;
  json["qemu_version"] = facts.qemu_version;
  json["machine_type"] = facts.machine_type;
  json["accelerator"] = facts.kvm ? "kvm" : "tcg";
  json["ram_bytes"] = facts.ram_bytes;
  json["uuid"] = facts.uuid;
  json["name"] = facts.name;
  json["qemu_binary"] = start.executable;
  json["argv"] = start.argv;
  json["cwd"] = start.cwd;
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
