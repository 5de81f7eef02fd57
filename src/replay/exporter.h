// One epoch as files that other programs read.
//
//   raw        a folder: NAME.ram for each RAM block and NAME.img for each disk (byte i of the file
//              is byte i of the block or disk; zero pages are holes), machine.json,
//              device_state.bin
//   elf        an ELF64 core: a PT_LOAD per stretch of guest-physical memory, so that an address in
//              gdb is a guest-physical one; no registers (see below)
//   migration  the stream of stream_writer.h, for `qemu -incoming`
//
// The core has a PT_NOTE with a note of ours that names VM and epoch, and none of a CPU's
// registers: they stand in QEMU's `cpu` sections, whose form changes with QEMU's version and which
// COLO's checkpoints send without the description that would tell it.
//
// Every output is written beside its final name and renamed when it is durable (output_file.h).
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include <vmshadow/result.h>
#include <vmshadow/shadow_reader.h>

namespace vmshadow::replay {

enum class ExportFormat { raw, elf, migration };

struct ExportOptions {
  bool replace = false;  ///< an existing file, or the folder of an earlier export
  /// May be empty. Called now and then with bytes of guest memory; an error stops the export, which
  /// then leaves nothing behind, and is returned.
  std::function<Status(std::uint64_t bytes_done, std::uint64_t bytes_total)> on_progress;
};

struct ExportedFile {
  std::string path;
  std::uint64_t bytes{};  ///< as long as it says it is; holes included
};

struct ExportReport {
  std::vector<ExportedFile> files;
  std::uint64_t pages{};       ///< written
  std::uint64_t zero_pages{};  ///< left as holes, or sent as zero
  /// RAM blocks that are not in the output: their guest-physical address is not known (elf).
  std::vector<std::string> left_out;
};

/// Writes `image` to `path` (a folder for raw). Errc::already_exists, Errc::no_space,
/// Errc::unsupported (elf: a machine whose memory map is not known), or the image's error.
[[nodiscard]] Result<ExportReport> export_epoch(const EpochImage& image, const std::string& vm_name,
                                                ExportFormat format, const std::string& path,
                                                const ExportOptions& options = {});

/// Writes one disk to `path`, raw and sparse. Errors as above.
[[nodiscard]] Status export_disk(const EpochImage& image, BlockIndex disk, const std::string& path,
                                 const ExportOptions& options = {});

/// A RAM block's or disk's name as a file name: what is not [A-Za-z0-9._-] becomes "%XX", so does
/// a leading '.'; different names stay different.
[[nodiscard]] std::string file_name_of_block(const MachineDescription::Block& block);

}  // namespace vmshadow::replay
