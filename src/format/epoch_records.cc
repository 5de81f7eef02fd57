#include "format/epoch_records.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <set>

#include "base/assert.h"
#include "base/hash.h"

namespace vmshadow::format {
namespace {

constexpr std::uint64_t kPagesPerBlockMax = kRamBlockBytesMax / kPageBytes;
constexpr std::uint32_t kEndFlagFull = 1;

struct BlockHeadBytes {
  le16 name_bytes;
  le16 kind;
  le64 bytes;
};
static_assert(sizeof(BlockHeadBytes) == 12);
constexpr std::uint16_t kBlockKindRam = 0;
constexpr std::uint16_t kBlockKindDisk = 1;
static_assert(kRamBlockNameBytesMax == kDiskNameBytesMax && kRamBlockBytesMax == kDiskBytesMax);

tl::unexpected<Error> malformed_body(std::string_view record, std::string_view what) {
  return fail(Errc::corrupt, fmt::format("malformed {} record: {}", record, what));
}

Status read_group_keys(BodyReader& reader, PageGroup& group, std::uint32_t& payload_bytes) {
  PageGroupHeadBytes head;
  if (!reader.read(head)) return malformed_body("page_group", "shorter than its head");
  group.page_count = head.page_count.get();
  if (group.page_count == 0 || group.page_count > kGroupPagesMax) {
    return malformed_body("page_group", fmt::format("{} pages", group.page_count));
  }
  if (head.reserved != 0) return malformed_body("page_group", "reserved byte is not 0");
  if (head.codec > static_cast<std::uint8_t>(Codec::lost)) {
    return fail(Errc::version,
                fmt::format("page_group codec {} is unknown to this program", head.codec));
  }
  group.codec = static_cast<Codec>(head.codec);
  payload_bytes = head.payload_bytes.get();
  for (std::size_t i = 0; i < group.page_count; ++i) {
    le64 key;
    if (!reader.read(key)) return malformed_body("page_group", "ends inside its keys");
    group.keys[i] = PageKey::unpack(key.get());
    if (group.keys[i].page.value >= kPagesPerBlockMax) {
      return malformed_body("page_group", "page number out of range");
    }
    const PageKey* const first = group.keys.data();
    if (std::find(first, first + i, group.keys[i]) != first + i) {
      return malformed_body("page_group", "the same page twice");
    }
  }
  return {};
}

}  // namespace

Result<PageGroup> decode_page_group(ByteSpan body) {
  BodyReader reader(body);
  PageGroup group;
  std::uint32_t payload_bytes = 0;
  VMSHADOW_TRY(read_group_keys(reader, group, payload_bytes));
  for (std::size_t i = 0; i < group.page_count; ++i) {
    le64 checksum;
    if (!reader.read(checksum)) return malformed_body("page_group", "ends inside its checksums");
    group.checksums[i] = checksum.get();
  }
  if (!reader.read_bytes(payload_bytes, group.payload) || !reader.empty()) {
    return malformed_body("page_group", "payload length does not match the body");
  }
  if (group.codec == Codec::raw && group.payload.size() != group.page_count * kPageBytes) {
    return malformed_body("page_group", "raw payload is not whole pages");
  }
  if (group.codec == Codec::lost) {
    const auto* const first = group.checksums.data();
    if (group.payload.size() > kLostTextBytesMax ||
        std::any_of(first, first + group.page_count, [](std::uint64_t sum) { return sum != 0; })) {
      return malformed_body("page_group", "lost pages with more than a sentence");
    }
  }
  return group;
}

Result<PageGroup> decode_page_group_keys(ByteSpan front) {
  BodyReader reader(front);
  PageGroup group;
  std::uint32_t payload_bytes = 0;
  VMSHADOW_TRY(read_group_keys(reader, group, payload_bytes));
  return group;
}

std::uint64_t page_checksum(const std::byte* page) {
  return checksum64(ByteSpan(page, kPageBytes));
}

void append_page_group_body(std::vector<std::byte>& out, Codec codec, std::span<const PageKey> keys,
                            std::span<const std::uint64_t> checksums, ByteSpan payload) {
  VMSHADOW_ASSERT(!keys.empty() && keys.size() <= kGroupPagesMax);
  VMSHADOW_ASSERT(checksums.size() == keys.size());
  if (codec == Codec::lost) payload = payload.first(std::min(payload.size(), kLostTextBytesMax));
  PageGroupHeadBytes head{};
  head.page_count = static_cast<std::uint16_t>(keys.size());
  head.codec = static_cast<std::uint8_t>(codec);
  head.payload_bytes = static_cast<std::uint32_t>(payload.size());
  append_struct(out, head);
  for (const PageKey& key : keys) append_struct(out, le64(key.packed()));
  for (const std::uint64_t checksum : checksums) append_struct(out, le64(checksum));
  append_bytes(out, payload);
}

void append_zero_pages_body(std::vector<std::byte>& out, std::span<const ZeroRun> runs) {
  VMSHADOW_ASSERT(!runs.empty() && runs.size() <= kZeroRunsMax);
  ZeroPagesHeadBytes head;
  head.run_count = static_cast<std::uint32_t>(runs.size());
  append_struct(out, head);
  for (const ZeroRun& run : runs) {
    ZeroRunBytes bytes;
    bytes.first = run.first.packed();
    bytes.count = run.count;
    append_struct(out, bytes);
  }
}

Result<std::vector<ZeroRun>> decode_zero_pages(ByteSpan body) {
  BodyReader reader(body);
  ZeroPagesHeadBytes head;
  if (!reader.read(head)) return malformed_body("zero_pages", "shorter than its head");
  if (head.reserved.get() != 0) return malformed_body("zero_pages", "reserved bytes are not 0");
  const std::uint64_t count = head.run_count.get();
  if (count == 0 || count * sizeof(ZeroRunBytes) != reader.rest().size()) {
    return malformed_body("zero_pages", "run count does not match the body");
  }
  std::vector<ZeroRun> runs;
  runs.reserve(count);
  ZeroRunBytes bytes;
  while (reader.read(bytes)) {
    const ZeroRun run{PageKey::unpack(bytes.first.get()), bytes.count.get()};
    if (run.count == 0 || run.count > kPagesPerBlockMax ||
        run.first.page.value > kPagesPerBlockMax - run.count) {
      return malformed_body("zero_pages", "run out of range");
    }
    runs.push_back(run);
  }
  return runs;
}

void append_machine_body(std::vector<std::byte>& out, const MachineDescription& machine) {
  VMSHADOW_ASSERT(machine.json.size() <= kMachineTextBytesMax);
  VMSHADOW_ASSERT(machine.configuration.size() <= kConfigurationBytesMax);
  VMSHADOW_ASSERT(machine.block_count() <= kBlocksMax);
  MachineHeadBytes head;
  head.json_bytes = static_cast<std::uint32_t>(machine.json.size());
  head.configuration_bytes = static_cast<std::uint32_t>(machine.configuration.size());
  head.block_count = static_cast<std::uint32_t>(machine.block_count());
  head.ram_section_id = machine.layout.ram_section_id;
  head.ram_section_instance = machine.layout.ram_section_instance;
  head.ram_section_version = machine.layout.ram_section_version;
  append_struct(out, head);
  append_bytes(out, machine.configuration);
  append_bytes(out, std::as_bytes(std::span(machine.json)));
  for (std::size_t i = 0; i < machine.block_count(); ++i) {
    const auto block = machine.block(BlockIndex{static_cast<std::uint16_t>(i)});
    VMSHADOW_ASSERT(block.name.size() <= kRamBlockNameBytesMax);
    BlockHeadBytes block_head;
    block_head.name_bytes = static_cast<std::uint16_t>(block.name.size());
    block_head.kind = block.is_disk ? kBlockKindDisk : kBlockKindRam;
    block_head.bytes = block.bytes;
    append_struct(out, block_head);
    append_bytes(out, std::as_bytes(std::span(block.name)));
  }
}

Result<MachineDescription> decode_machine(ByteSpan body) {
  BodyReader reader(body);
  MachineHeadBytes head;
  if (!reader.read(head)) return malformed_body("machine", "shorter than its head");
  if (head.json_bytes.get() > kMachineTextBytesMax ||
      head.configuration_bytes.get() > kConfigurationBytesMax ||
      head.block_count.get() > kBlocksMax) {
    return malformed_body("machine", "a length is over its limit");
  }
  MachineDescription machine;
  ByteSpan bytes;
  if (!reader.read_bytes(head.configuration_bytes.get(), bytes)) {
    return malformed_body("machine", "ends inside its configuration");
  }
  machine.configuration.assign(bytes.begin(), bytes.end());
  if (!reader.read_bytes(head.json_bytes.get(), bytes)) {
    return malformed_body("machine", "ends inside its description");
  }
  machine.json.assign(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  machine.layout.ram_section_id = head.ram_section_id.get();
  machine.layout.ram_section_instance = head.ram_section_instance.get();
  machine.layout.ram_section_version = head.ram_section_version.get();
  std::set<std::pair<std::uint16_t, std::string>> names;
  for (std::uint32_t i = 0; i < head.block_count.get(); ++i) {
    BlockHeadBytes block_head;
    if (!reader.read(block_head)) return malformed_body("machine", "ends inside its blocks");
    const std::uint16_t kind = block_head.kind.get();
    const std::uint64_t block_bytes = block_head.bytes.get();
    if (kind > kBlockKindDisk || (kind == kBlockKindRam && !machine.disks.empty())) {
      return malformed_body("machine", fmt::format("block {} is of an unknown kind, or RAM behind "
                                                   "a disk",
                                                   i));
    }
    const std::uint64_t unit = kind == kBlockKindDisk ? kDiskSectorBytes : kPageBytes;
    if (block_head.name_bytes.get() == 0 || block_head.name_bytes.get() > kRamBlockNameBytesMax ||
        block_bytes > kRamBlockBytesMax || block_bytes % unit != 0) {
      return malformed_body("machine", fmt::format("block {} is out of range", i));
    }
    if (!reader.read_bytes(block_head.name_bytes.get(), bytes)) {
      return malformed_body("machine", "ends inside a block's name");
    }
    std::string name(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    if (!names.emplace(kind, name).second) return malformed_body("machine", "a name twice");
    if (kind == kBlockKindDisk) {
      machine.disks.push_back({std::move(name), block_bytes});
    } else {
      machine.layout.blocks.push_back({std::move(name), block_bytes});
    }
  }
  if (!reader.empty()) return malformed_body("machine", "bytes left over");
  return machine;
}

void append_epoch_end_body(std::vector<std::byte>& out, const EpochSummary& summary) {
  EpochEndBytes bytes;
  bytes.record_count = summary.record_count;
  bytes.flags = summary.full ? kEndFlagFull : 0;
  bytes.chain = summary.chain;
  bytes.cut_wall_ns = static_cast<std::uint64_t>(summary.cut_wall.ns);
  bytes.captured_pages = summary.captured_pages;
  bytes.stored_pages = summary.stored_pages;
  bytes.zero_pages = summary.zero_pages;
  bytes.record_bytes = summary.record_bytes;
  bytes.device_bytes = summary.device_bytes;
  append_struct(out, bytes);
}

Result<EpochSummary> decode_epoch_end(ByteSpan body) {
  BodyReader reader(body);
  EpochEndBytes bytes;
  if (!reader.read(bytes) || !reader.empty()) return malformed_body("epoch_end", "wrong length");
  if ((bytes.flags.get() & ~kEndFlagFull) != 0) {
    return malformed_body("epoch_end", "a reserved flag is set");
  }
  EpochSummary summary;
  summary.record_count = bytes.record_count.get();
  summary.full = (bytes.flags.get() & kEndFlagFull) != 0;
  summary.chain = bytes.chain.get();
  summary.cut_wall = WallTime{static_cast<std::int64_t>(bytes.cut_wall_ns.get())};
  summary.captured_pages = bytes.captured_pages.get();
  summary.stored_pages = bytes.stored_pages.get();
  summary.zero_pages = bytes.zero_pages.get();
  summary.record_bytes = bytes.record_bytes.get();
  summary.device_bytes = bytes.device_bytes.get();
  if (summary.zero_pages > summary.stored_pages || summary.device_bytes > kDeviceStateBytesMax) {
    return malformed_body("epoch_end", "counts contradict each other");
  }
  return summary;
}

}  // namespace vmshadow::format
