#include "replay/guest_map.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <optional>
#include <string_view>

namespace vmshadow::replay {
namespace {

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;
constexpr std::uint64_t kGiB = std::uint64_t{1} << 30;
constexpr std::uint64_t kFourGiB = 4 * kGiB;
constexpr std::uint64_t kI440fxAllBelow = 0xe0000000;  // 3.5 GiB
constexpr std::uint64_t kI440fxAligned = 3 * kGiB;
constexpr std::uint64_t kQ35AllBelow = 0xb0000000;  // 2.75 GiB
constexpr std::uint64_t kQ35Split = 2 * kGiB;
constexpr std::uint64_t kBiosBytesMax = 16 * kMiB;
/// RAM that reaches this far is moved above 1 TiB for AMD processors, and not for others.
constexpr std::uint64_t kAmdHole = 0xfd00000000;
constexpr std::string_view kDefaultRam = "pc.ram";
constexpr std::string_view kBios = "pc.bios";

enum class Chipset { i440fx, i440fx_unaligned, q35 };

std::optional<Chipset> chipset_of(std::string_view machine_type) {
  if (machine_type.starts_with("pc-q35-")) return Chipset::q35;
  constexpr std::string_view kI440fx = "pc-i440fx-";
  if (machine_type.starts_with(kI440fx)) {
    const bool old = machine_type.substr(kI440fx.size()).starts_with("1.");
    return old ? Chipset::i440fx_unaligned : Chipset::i440fx;
  }
  if (machine_type.starts_with("pc-1.") || machine_type.starts_with("pc-0.")) {
    return Chipset::i440fx_unaligned;
  }
  return std::nullopt;
}

/// The last value that the command line gives to a property of the machine; empty: none.
std::string machine_property(const MachineRecord& record, std::string_view key) {
  std::string value;
  for (std::size_t i = 0; i + 1 < record.argv.size(); ++i) {
    const std::string_view option = record.argv[i];
    if (option != "-machine" && option != "--machine" && option != "-M") continue;
    std::string_view rest = record.argv[i + 1];
    while (!rest.empty()) {
      const std::size_t comma = std::min(rest.find(','), rest.size());
      const std::string_view field = rest.substr(0, comma);
      if (field.size() > key.size() && field.starts_with(key) && field[key.size()] == '=') {
        value = field.substr(key.size() + 1);
      }
      rest.remove_prefix(std::min(comma + 1, rest.size()));
    }
  }
  return value;
}

/// QEMU's sizes: a number, with or without B, K, M, G or T.
std::optional<std::uint64_t> parse_size(std::string_view text) {
  std::uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc{}) return std::nullopt;
  const std::string_view suffix = text.substr(static_cast<std::size_t>(end - text.data()));
  if (suffix.empty()) return number;
  constexpr std::string_view kSuffixes = "bkmgt";
  const std::size_t power = kSuffixes.find(static_cast<char>(suffix[0] | 0x20));
  if (suffix.size() != 1 || power == std::string_view::npos) return std::nullopt;
  const std::uint64_t unit = std::uint64_t{1} << (10 * power);
  if (number > UINT64_MAX / unit) return std::nullopt;
  return number * unit;
}

std::uint64_t bytes_below_4g(Chipset chipset, std::uint64_t ram, std::optional<std::uint64_t> max) {
  if (chipset == Chipset::q35) {
    const std::uint64_t limit = ram >= kQ35AllBelow ? kQ35Split : kQ35AllBelow;
    return std::min(ram, std::min(limit, max.value_or(kFourGiB)));
  }
  std::uint64_t limit = max.value_or(kI440fxAllBelow);
  if (ram >= limit && chipset == Chipset::i440fx) limit = std::min(limit, kI440fxAligned);
  return std::min(ram, limit);
}

std::optional<BlockIndex> find_block(const RamLayout& layout, std::string_view name) {
  for (std::size_t i = 0; i < layout.blocks.size(); ++i) {
    if (layout.blocks[i].name == name) return BlockIndex{static_cast<std::uint16_t>(i)};
  }
  return std::nullopt;
}

/// The block that is main RAM: a memory backend's if the command line names one.
Result<BlockIndex> find_main_ram(const MachineRecord& record, const RamLayout& layout) {
  const std::string backend = machine_property(record, "memory-backend");
  for (const std::string& name :
       {backend, "/objects/" + backend, std::string(backend.empty() ? kDefaultRam : "")}) {
    if (name.empty()) continue;
    if (const auto found = find_block(layout, name)) return *found;
  }
  return fail(Errc::unsupported,
              fmt::format("the VM's RAM is not one block '{}' (several NUMA memory backends?): "
                          "use --format raw, which has each block by itself",
                          backend.empty() ? kDefaultRam : std::string_view(backend)));
}

tl::unexpected<Error> no_map(const std::string& why) {
  return fail(Errc::unsupported,
              fmt::format("{}: where its RAM lies in the guest's address space is not known; use "
                          "--format raw, which has each block by itself",
                          why));
}

}  // namespace

Result<GuestMap> guest_physical_map(const MachineRecord& record, const RamLayout& layout) {
  const auto chipset = chipset_of(record.machine_type);
  if (!chipset) {
    return no_map(
        record.machine_type.empty()
            ? std::string("no machine type was recorded with this VM")
            : fmt::format("machine type '{}' is no i440fx or q35 PC", record.machine_type));
  }
  std::optional<std::uint64_t> max;
  if (const std::string text = machine_property(record, "max-ram-below-4g"); !text.empty()) {
    max = parse_size(text);
    if (!max || *max == 0 || *max > kFourGiB || *max % kPageBytes != 0) {
      return no_map(
          fmt::format("max-ram-below-4g={} on the recorded command line is no size in "
                      "pages up to 4 GiB",
                      text));
    }
  }
  VMSHADOW_ASSIGN(const BlockIndex ram, find_main_ram(record, layout));
  const std::uint64_t bytes = layout.blocks[ram.value].bytes;
  const std::uint64_t below = bytes_below_4g(*chipset, bytes, max);
  if (below < bytes && kFourGiB + (bytes - below) > kAmdHole) {
    return no_map("RAM that reaches 1 TiB is moved for some processors");
  }

  GuestMap map;
  map.ranges.push_back({0, below, ram, 0});
  const auto bios = find_block(layout, kBios);
  const std::uint64_t bios_bytes = bios ? layout.blocks[bios->value].bytes : 0;
  const bool bios_fits =
      bios_bytes != 0 && bios_bytes <= kBiosBytesMax && below <= kFourGiB - bios_bytes;
  if (bios_fits) map.ranges.push_back({kFourGiB - bios_bytes, bios_bytes, *bios, 0});
  if (below < bytes) map.ranges.push_back({kFourGiB, bytes - below, ram, below});
  for (std::size_t i = 0; i < layout.blocks.size(); ++i) {
    if (i == ram.value || (bios_fits && i == bios->value)) continue;
    map.unmapped.push_back(layout.blocks[i].name);
  }
  return map;
}

}  // namespace vmshadow::replay
