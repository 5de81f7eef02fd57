// A second, independent reading of QEMU's migration stream, for tests: strict, whole stream in
// memory, throws on anything it does not expect. Knows RAM and takes all devices as one piece.
#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <vmshadow/machine.h>

namespace vmshadow::testing {

struct ParsedStream {
  std::vector<std::byte> configuration;
  RamLayout layout;
  /// Last bytes of every page that was sent, by block name and offset; how often each was sent.
  std::map<std::pair<std::string, std::uint64_t>, std::vector<std::byte>> pages;
  std::map<std::pair<std::string, std::uint64_t>, int> times_sent;
  std::uint64_t zero_records = 0;
  std::uint64_t name_records = 0;
  std::vector<std::byte> device_state;  ///< with the 0x00 that ends it
  std::string vm_description;
};

class MigrationStreamParser {
 public:
  explicit MigrationStreamParser(ByteSpan bytes) : bytes_(bytes) {}

  ParsedStream parse() {
    expect(integer(4) == 0x5145564d, "magic");
    expect(integer(4) == 3, "version");
    expect(integer(1) == 7, "configuration section");
    const std::size_t configuration = at_;
    take(integer(4));
    while (peek() == 5) {  // subsections
      take(1);
      const auto name = take(integer(1));
      const std::string text(reinterpret_cast<const char*>(name.data()), name.size());
      integer(4);
      skip_subsection(text);
    }
    const ByteSpan head = bytes_.subspan(configuration, at_ - configuration);
    out_.configuration.assign(head.begin(), head.end());
    while (!ram_ended_) section();
    rest();
    return std::move(out_);
  }

 private:
  static void expect(bool holds, const std::string& what) {
    if (!holds) throw std::runtime_error("migration stream: unexpected " + what);
  }
  ByteSpan take(std::uint64_t count) {
    expect(count <= bytes_.size() - at_, "end");
    const ByteSpan taken = bytes_.subspan(at_, count);
    at_ += count;
    return taken;
  }
  std::uint64_t integer(std::size_t width) {
    std::uint64_t value = 0;
    for (const std::byte b : take(width)) value = (value << 8) | std::to_integer<unsigned>(b);
    return value;
  }
  unsigned peek() const {
    expect(at_ < bytes_.size(), "end");
    return std::to_integer<unsigned>(bytes_[at_]);
  }
  std::string name() {
    const ByteSpan taken = take(integer(1));
    return {reinterpret_cast<const char*>(taken.data()), taken.size()};
  }
  void skip_subsection(const std::string& subsection) {
    if (subsection == "configuration/target-page-bits") {
      take(4);
    } else if (subsection == "configuration/uuid") {
      take(16);
    } else if (subsection == "configuration/capabilities") {
      for (auto left = integer(4); left > 0; --left) name();
    } else {
      expect(false, "subsection " + subsection);
    }
  }
  void footer() {
    expect(integer(1) == 0x7e, "section footer");
    expect(integer(4) == out_.layout.ram_section_id, "footer's section");
  }
  void section() {
    const auto type = integer(1);
    const auto id = static_cast<std::uint32_t>(integer(4));
    if (type == 1) {
      expect(name() == "ram", "section that is not ram");
      out_.layout.ram_section_id = id;
      out_.layout.ram_section_instance = static_cast<std::uint32_t>(integer(4));
      out_.layout.ram_section_version = static_cast<std::uint32_t>(integer(4));
    } else {
      expect(type == 2 || type == 3, "section type");
      expect(id == out_.layout.ram_section_id, "section id");
    }
    ram();
    footer();
    ram_ended_ = type == 3;
  }
  void ram() {
    for (;;) {
      const std::uint64_t word = integer(8);
      const std::uint64_t flags = word & 0xfff;
      const std::uint64_t offset = word & ~std::uint64_t{0xfff};
      if (flags == 0x10) return;
      if (flags == 0x4) {
        block_list(offset);
        continue;
      }
      expect((flags & ~0x20u) == 0x2 || (flags & ~0x20u) == 0x8, "page flags");
      if ((flags & 0x20) == 0) {
        block_ = name();
        ++out_.name_records;
      }
      page(offset, (flags & 0x2) != 0);
    }
  }
  void block_list(std::uint64_t total) {
    std::uint64_t sum = 0;
    while (sum < total) {
      RamBlock block;
      block.name = name();
      block.bytes = integer(8);
      sum += block.bytes;
      out_.layout.blocks.push_back(std::move(block));
    }
    expect(sum == total, "sum of the RAM blocks");
  }
  void page(std::uint64_t offset, bool zero) {
    bool known = false;
    for (const RamBlock& block : out_.layout.blocks) {
      known |= block.name == block_ && offset < block.bytes;
    }
    expect(known, "page at " + std::to_string(offset) + " of '" + block_ + "'");
    ++out_.times_sent[{block_, offset}];
    auto& bytes = out_.pages[{block_, offset}];
    if (zero) {
      expect(integer(1) == 0, "byte of a zero page");
      bytes.assign(kPageBytes, std::byte{0});
      ++out_.zero_records;
    } else {
      const ByteSpan data = take(kPageBytes);
      bytes.assign(data.begin(), data.end());
    }
  }
  /// Device sections have no length; the description's, last in the stream, does: look for the
  /// place where `00 06 be32 length` fits what follows.
  void rest() {
    const ByteSpan tail = bytes_.subspan(at_);
    for (std::size_t i = tail.size() - 5; i > 0; --i) {
      if (tail[i] != std::byte{6} || tail[i - 1] != std::byte{0}) continue;
      at_ = bytes_.size() - tail.size() + i + 1;
      const std::uint64_t length = integer(4);
      if (length != bytes_.size() - at_) continue;
      out_.device_state.assign(tail.begin(), tail.begin() + static_cast<std::ptrdiff_t>(i));
      const ByteSpan text = take(length);
      out_.vm_description.assign(reinterpret_cast<const char*>(text.data()), text.size());
      return;
    }
    expect(false, "end: no VM description");
  }

  ByteSpan bytes_;
  std::size_t at_ = 0;
  std::string block_;
  bool ram_ended_ = false;
  ParsedStream out_;
};

}  // namespace vmshadow::testing
