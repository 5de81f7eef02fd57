// The recorded machine description, parsed: how the VM's QEMU was started. Pure.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <vmshadow/result.h>

namespace vmshadow::replay {

/// Limits on what a stored description may claim.
inline constexpr std::size_t kArgumentsMax = 16 * 1024;

struct MachineRecord {
  std::string qemu_binary;        ///< path of the executable, may be empty
  std::string qemu_version;       ///< "7.2.22", may be empty
  std::string machine_type;       ///< versioned, "pc-i440fx-7.2"; empty if not recorded
  std::string accelerator;        ///< "kvm", "tcg" or empty
  std::uint64_t ram_bytes{};      ///< 0 if not recorded
  std::vector<std::string> argv;  ///< as /proc/PID/cmdline had it; may be empty
  std::string cwd;                ///< what relative paths in argv refer to; may be empty
  struct Disk {
    std::string name;
    std::string format;  ///< "raw", "qcow2", …
    std::string file;    ///< its image, as QEMU called it
  };
  std::vector<Disk> disks;  ///< the protected ones, in MachineDescription's order
  std::string uuid;
  std::string name;
};

/// Parses MachineDescription::json. Keys that are absent leave their field empty, unknown ones are
/// ignored. Errc::corrupt names the key that is not of its documented type.
[[nodiscard]] Result<MachineRecord> parse_machine_record(const std::string& json_text);

}  // namespace vmshadow::replay
