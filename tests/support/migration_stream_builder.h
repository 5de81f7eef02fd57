// Builds QEMU migration and COLO streams byte by byte, for tests and benchmarks of the parser.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <vmshadow/types.h>

#include "base/endian.h"

namespace vmshadow::test {

class MigrationStreamBuilder {
 public:
  static constexpr std::uint32_t kRamId = 2;
  using Blocks = std::vector<std::pair<std::string, std::uint64_t>>;

  MigrationStreamBuilder& u8(unsigned v) {
    bytes.push_back(static_cast<std::byte>(v));
    return *this;
  }
  template <class Endian>
  MigrationStreamBuilder& integer(auto v) {
    const Endian e(static_cast<decltype(Endian{}.get())>(v));
    const auto* p = reinterpret_cast<const std::byte*>(&e);
    bytes.insert(bytes.end(), p, p + sizeof e);
    return *this;
  }
  MigrationStreamBuilder& b32(std::uint32_t v) { return integer<be32>(v); }
  MigrationStreamBuilder& b64(std::uint64_t v) { return integer<be64>(v); }
  MigrationStreamBuilder& text(std::string_view s) {
    for (const char c : s) u8(static_cast<unsigned char>(c));
    return *this;
  }
  MigrationStreamBuilder& short_text(std::string_view s) {
    return u8(static_cast<unsigned>(s.size())).text(s);
  }

  MigrationStreamBuilder& header() { return b32(0x5145564d).b32(3); }
  MigrationStreamBuilder& configuration(std::string_view machine = "pc-i440fx-7.2") {
    return u8(7).b32(static_cast<std::uint32_t>(machine.size())).text(machine);
  }
  MigrationStreamBuilder& command(unsigned number, std::string_view data = {}) {
    return u8(8).integer<be16>(number).integer<be16>(data.size()).text(data);
  }
  MigrationStreamBuilder& footer(std::uint32_t id = kRamId) { return u8(0x7e).b32(id); }
  MigrationStreamBuilder& eos() { return b64(0x10); }
  MigrationStreamBuilder& ram_start(const Blocks& blocks) {
    u8(1).b32(kRamId).short_text("ram").b32(0).b32(4);
    std::uint64_t total = 0;
    for (const auto& [name, size] : blocks) total += size;
    b64(total | 4);
    for (const auto& [name, size] : blocks) short_text(name).b64(size);
    return eos().footer();
  }
  MigrationStreamBuilder& part() { return u8(2).b32(kRamId); }
  MigrationStreamBuilder& end() { return u8(3).b32(kRamId); }
  /// An empty `block` means CONTINUE.
  MigrationStreamBuilder& page(std::string_view block, std::uint64_t offset, unsigned fill) {
    b64(offset | 8 | (block.empty() ? 0x20 : 0));
    if (!block.empty()) short_text(block);
    bytes.insert(bytes.end(), kPageBytes, static_cast<std::byte>(fill));
    return *this;
  }
  MigrationStreamBuilder& zero(std::string_view block, std::uint64_t offset) {
    b64(offset | 2 | (block.empty() ? 0x20 : 0));
    if (!block.empty()) short_text(block);
    return u8(0);
  }
  /// The device section in which QEMU says what state the VM was in.
  MigrationStreamBuilder& global_state(std::string_view run_state) {
    constexpr std::size_t kFieldBytes = 100;
    u8(4).b32(39).short_text("globalstate").b32(0).b32(1);
    b32(static_cast<std::uint32_t>(run_state.size() + 1)).text(run_state);
    bytes.resize(bytes.size() + kFieldBytes - run_state.size());
    return *this;
  }
  MigrationStreamBuilder& message(std::uint32_t number) { return b32(number); }

  std::vector<std::byte> bytes;
};

}  // namespace vmshadow::test
