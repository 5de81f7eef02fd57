#include "capture/qemu_process.h"

#include <fmt/format.h>

#include <filesystem>
#include <system_error>

namespace vmshadow::capture {

std::optional<QemuProcess> find_qemu_process(const qmp::Session& session) {
  const auto pid = session.peer_pid();
  if (!pid) return std::nullopt;
  std::error_code ignored;
  const auto executable = std::filesystem::read_symlink(fmt::format("/proc/{}/exe", *pid), ignored);
  const std::string name = executable.filename().string();
  if (!name.starts_with("qemu") && name != "kvm") return std::nullopt;
  return QemuProcess{*pid, executable.string()};
}

}  // namespace vmshadow::capture
