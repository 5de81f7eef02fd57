#include "replay/exporter.h"

#include <elf.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "replay/guest_map.h"
#include "replay/machine_record.h"
#include "replay/output_file.h"
#include "replay/stream_writer.h"

namespace vmshadow::replay {
namespace {

constexpr const char* kMachineFile = "machine.json";
constexpr const char* kDeviceStateFile = "device_state.bin";
constexpr const char* kRamSuffix = ".ram";
constexpr const char* kDiskSuffix = ".img";
constexpr std::size_t kFileNameBytesMax = 255;
constexpr std::uint64_t kPagesPerReport = 256;
constexpr std::string_view kNoteName = "VMSHADOW";
/// "VMSH": no type that a debugger knows, whatever name stands beside it.
constexpr std::uint32_t kNoteEpoch = 0x564d5348;

/// Counts pages, whatever the format, and lets the caller look on and stop.
class PageCounter {
 public:
  /// `total_bytes`: of all blocks that will be ended.
  PageCounter(std::uint64_t total_bytes, const ExportOptions& options)
      : options_(options), total_(total_bytes) {}
  /// After each visited page.
  Status count() {
    ++visited_;
    if (visited_ % kPagesPerReport != 0) return {};
    return report(done_ + visited_ * kPageBytes);
  }
  /// After all of a block, visited or not.
  Status end_block(const MachineDescription::Block& block) {
    visited_ = 0;
    done_ += block.pages * kPageBytes;
    return report(done_);
  }

 private:
  [[nodiscard]] Status report(std::uint64_t done) const {
    return options_.on_progress ? options_.on_progress(std::min(done, total_), total_) : Status{};
  }
  const ExportOptions& options_;
  const std::uint64_t total_;
  std::uint64_t done_ = 0;
  std::uint64_t visited_ = 0;
};

/// Hands each page with data of a block to `write`, checked to lie inside it; of a disk's last page
/// what is on the disk.
Status for_each_data_page(const EpochImage& image, BlockIndex index, PageCounter& counter,
                          ExportReport& report,
                          const std::function<Status(std::uint64_t offset, ByteSpan)>& write) {
  const auto block = image.machine().block(index);
  std::uint64_t written = 0;
  const auto visit = [&](PageNumber page, const std::byte* data) -> Status {
    if (page.value >= block.pages) {
      return fail(Errc::corrupt, fmt::format("the epoch holds page {} of '{}', which has {} pages",
                                             page.value, block.name, block.pages));
    }
    if (data != nullptr) {
      ++written;
      const std::uint64_t offset = page.value * kPageBytes;
      const std::uint64_t bytes = std::min<std::uint64_t>(kPageBytes, block.bytes - offset);
      VMSHADOW_TRY(write(offset, ByteSpan(data, bytes)));
    }
    return counter.count();
  };
  VMSHADOW_TRY(image.for_each_page(index, visit));
  report.pages += written;
  report.zero_pages += block.pages - std::min(written, block.pages);
  return counter.end_block(block);
}

// ---- raw

Status write_whole(const OutputPlace& place, const std::string& name, ByteSpan bytes,
                   ExportReport& report) {
  VMSHADOW_ASSIGN(SparseWriter file, place.create(name));
  VMSHADOW_TRY(file.write(0, bytes));
  report.files.push_back({place.path() + "/" + name, bytes.size()});
  return file.finish();
}

Status write_block(const EpochImage& image, BlockIndex index, SparseWriter& file,
                   PageCounter& counter, ExportReport& report) {
  VMSHADOW_TRY(file.set_bytes(image.machine().block(index).bytes));
  VMSHADOW_TRY(for_each_data_page(
      image, index, counter, report,
      [&](std::uint64_t offset, ByteSpan bytes) { return file.write(offset, bytes); }));
  return file.finish();
}

Result<ExportReport> export_raw(const EpochImage& image, const std::string& path,
                                const ExportOptions& options) {
  ExportReport report;
  VMSHADOW_ASSIGN(const auto device_state, image.device_state());
  VMSHADOW_ASSIGN(OutputPlace place,
                  OutputPlace::prepare(path, OutputPlace::Kind::folder, options.replace,
                                       {kMachineFile, kDeviceStateFile}));
  const MachineDescription& machine = image.machine();
  PageCounter counter(machine.total_pages() * kPageBytes, options);
  for (std::size_t i = 0; i < machine.block_count(); ++i) {
    const BlockIndex index{static_cast<std::uint16_t>(i)};
    const std::string name = file_name_of_block(machine.block(index));
    VMSHADOW_ASSIGN(SparseWriter file, place.create(name));
    VMSHADOW_TRY(write_block(image, index, file, counter, report));
    report.files.push_back({place.path() + "/" + name, machine.block(index).bytes});
  }
  VMSHADOW_TRY(
      write_whole(place, kMachineFile, std::as_bytes(std::span(image.machine().json)), report));
  VMSHADOW_TRY(write_whole(place, kDeviceStateFile, device_state, report));
  VMSHADOW_TRY(place.publish());
  return report;
}

// ---- elf

template <class Struct>
void append(std::vector<std::byte>& to, const Struct& value) {
  const auto* bytes = reinterpret_cast<const std::byte*>(&value);
  to.insert(to.end(), bytes, bytes + sizeof value);
}

/// A name or description of a note, padded to 4 bytes.
void append_padded(std::vector<std::byte>& to, std::string_view text) {
  const auto bytes = std::as_bytes(std::span(text));
  to.insert(to.end(), bytes.begin(), bytes.end());
  to.resize(to.size() + (4 - text.size() % 4) % 4);
}

std::vector<std::byte> make_note(const EpochImage& image, const std::string& vm_name) {
  const std::string text = fmt::format("VM {} epoch {} generation {}", vm_name,
                                       image.info().epoch.value, image.info().generation.value);
  const std::string name(kNoteName.data(), kNoteName.size() + 1);  // its NUL belongs to it
  std::vector<std::byte> note;
  append(note, Elf64_Nhdr{static_cast<Elf64_Word>(name.size()),
                          static_cast<Elf64_Word>(text.size() + 1), kNoteEpoch});
  append_padded(note, name);
  append_padded(note, std::string_view(text.c_str(), text.size() + 1));
  return note;
}

/// Where the core's parts lie: head and note first, then each range, aligned to pages.
struct CoreLayout {
  std::vector<std::byte> head;
  std::vector<std::uint64_t> offsets;  ///< of the map's ranges
  std::uint64_t bytes{};
};

CoreLayout lay_out_core(const GuestMap& map, const std::vector<std::byte>& note) {
  Elf64_Ehdr header{};
  std::memcpy(header.e_ident, ELFMAG, SELFMAG);
  header.e_ident[EI_CLASS] = ELFCLASS64;
  header.e_ident[EI_DATA] = ELFDATA2LSB;
  header.e_ident[EI_VERSION] = EV_CURRENT;
  header.e_type = ET_CORE;
  header.e_machine = EM_X86_64;
  header.e_version = EV_CURRENT;
  header.e_phoff = sizeof header;
  header.e_ehsize = sizeof header;
  header.e_phentsize = sizeof(Elf64_Phdr);
  header.e_phnum = static_cast<Elf64_Half>(1 + map.ranges.size());

  CoreLayout core;
  append(core.head, header);
  Elf64_Phdr note_segment{};
  note_segment.p_type = PT_NOTE;
  note_segment.p_offset = sizeof header + header.e_phnum * sizeof(Elf64_Phdr);
  note_segment.p_filesz = note_segment.p_memsz = note.size();
  note_segment.p_align = 4;
  append(core.head, note_segment);
  std::uint64_t at = note_segment.p_offset + note.size();
  at = (at + kPageBytes - 1) / kPageBytes * kPageBytes;
  for (const GuestRange& range : map.ranges) {
    Elf64_Phdr load{};
    load.p_type = PT_LOAD;
    load.p_flags = PF_R | PF_W | PF_X;
    load.p_offset = at;
    load.p_vaddr = load.p_paddr = range.guest_address;
    load.p_filesz = load.p_memsz = range.bytes;
    load.p_align = kPageBytes;
    append(core.head, load);
    core.offsets.push_back(at);
    at += range.bytes;
  }
  core.head.insert(core.head.end(), note.begin(), note.end());
  core.bytes = at;
  return core;
}

Result<ExportReport> export_elf(const EpochImage& image, const std::string& vm_name,
                                const std::string& path, const ExportOptions& options) {
  ExportReport report;
  VMSHADOW_ASSIGN(const MachineRecord record, parse_machine_record(image.machine().json));
  VMSHADOW_ASSIGN(const GuestMap map, guest_physical_map(record, image.machine().layout));
  report.left_out = map.unmapped;
  const CoreLayout core = lay_out_core(map, make_note(image, vm_name));
  VMSHADOW_ASSIGN(OutputPlace place,
                  OutputPlace::prepare(path, OutputPlace::Kind::file, options.replace));
  VMSHADOW_ASSIGN(SparseWriter file, place.open());
  VMSHADOW_TRY(file.set_bytes(core.bytes));
  VMSHADOW_TRY(file.write(0, core.head));

  PageCounter counter(image.machine().layout.total_bytes(), options);
  const auto& blocks = image.machine().layout.blocks;
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    const BlockIndex index{static_cast<std::uint16_t>(i)};
    const bool is_mapped = std::any_of(map.ranges.begin(), map.ranges.end(),
                                       [&](const GuestRange& r) { return r.block == index; });
    if (!is_mapped) {
      VMSHADOW_TRY(counter.end_block(image.machine().block(index)));
      continue;
    }
    VMSHADOW_TRY(for_each_data_page(
        image, index, counter, report, [&](std::uint64_t offset, ByteSpan bytes) -> Status {
          for (std::size_t r = 0; r < map.ranges.size(); ++r) {
            const GuestRange& range = map.ranges[r];
            if (range.block != index || offset < range.block_offset ||
                offset >= range.block_offset + range.bytes) {
              continue;
            }
            return file.write(core.offsets[r] + (offset - range.block_offset), bytes);
          }
          return {};
        }));
  }
  VMSHADOW_TRY(file.finish());
  VMSHADOW_TRY(place.publish());
  report.files.push_back({place.path(), core.bytes});
  return report;
}

// ---- migration

Result<ExportReport> export_migration(const EpochImage& image, const std::string& path,
                                      const ExportOptions& options) {
  VMSHADOW_ASSIGN(OutputPlace place,
                  OutputPlace::prepare(path, OutputPlace::Kind::file, options.replace));
  VMSHADOW_ASSIGN(SparseWriter file, place.open());
  std::uint64_t bytes = 0;
  Status stop;  // from the progress, which cannot return it
  const auto take = [&](ByteSpan piece) -> Status {
    VMSHADOW_TRY(std::exchange(stop, {}));
    VMSHADOW_TRY(file.write(bytes, piece));
    bytes += piece.size();
    return {};
  };
  const auto look_on = [&](std::uint64_t pages, std::uint64_t pages_total) {
    if (options.on_progress && stop) {
      stop = options.on_progress(pages * kPageBytes, pages_total * kPageBytes);
    }
  };
  VMSHADOW_ASSIGN(const StreamStats stats, write_stream(image, take, look_on));
  VMSHADOW_TRY(std::move(stop));
  VMSHADOW_TRY(file.finish());
  VMSHADOW_TRY(place.publish());
  ExportReport report;
  report.files.push_back({place.path(), bytes});
  report.pages = stats.pages - stats.zero_pages;
  report.zero_pages = stats.zero_pages;
  return report;
}

}  // namespace

Status export_disk(const EpochImage& image, BlockIndex disk, const std::string& path,
                   const ExportOptions& options) {
  VMSHADOW_ASSIGN(OutputPlace place,
                  OutputPlace::prepare(path, OutputPlace::Kind::file, options.replace));
  VMSHADOW_ASSIGN(SparseWriter file, place.open());
  PageCounter counter(image.machine().block(disk).pages * kPageBytes, options);
  ExportReport report;
  VMSHADOW_TRY(write_block(image, disk, file, counter, report));
  return place.publish();
}

std::string file_name_of_block(const MachineDescription::Block& block) {
  std::string name;
  for (const char c : block.name) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                       c == '_' || c == '-' || (c == '.' && !name.empty());
    if (plain) {
      name += c;
    } else {
      name += fmt::format("%{:02X}", static_cast<unsigned char>(c));
    }
  }
  return name + (block.is_disk ? kDiskSuffix : kRamSuffix);
}

Result<ExportReport> export_epoch(const EpochImage& image, const std::string& vm_name,
                                  ExportFormat format, const std::string& path,
                                  const ExportOptions& options) {
  for (std::size_t i = 0; i < image.machine().block_count(); ++i) {
    const auto block = image.machine().block(BlockIndex{static_cast<std::uint16_t>(i)});
    if (format == ExportFormat::raw && file_name_of_block(block).size() > kFileNameBytesMax) {
      return fail(Errc::unsupported, fmt::format("'{}' is a name too long for a file", block.name));
    }
  }
  switch (format) {
    case ExportFormat::raw:
      return export_raw(image, path, options);
    case ExportFormat::elf:
      return export_elf(image, vm_name, path, options);
    case ExportFormat::migration:
      return export_migration(image, path, options);
  }
  return fail(Errc::invalid_argument, "an export format without a name");
}

}  // namespace vmshadow::replay
