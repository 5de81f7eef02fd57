#include "format/record.h"

#include <fmt/format.h>

#include <cstring>

#include "base/assert.h"
#include "base/hash.h"

namespace vmshadow::format {

bool is_known(RecordType type) {
  switch (type) {
    case RecordType::machine:
    case RecordType::page_group:
    case RecordType::zero_pages:
    case RecordType::device_state:
    case RecordType::epoch_end:
    case RecordType::sealed_machine:
    case RecordType::sealed_page_group:
    case RecordType::sealed_device_state:
    case RecordType::hello:
    case RecordType::welcome:
    case RecordType::ack:
    case RecordType::refusal:
    case RecordType::ping:
    case RecordType::pong:
    case RecordType::base_query:
    case RecordType::base_hashes:
    case RecordType::base_end:
    case RecordType::commit:
    case RecordType::grant:
    case RecordType::pad:
    case RecordType::vm_state:
    case RecordType::segment_list:
    case RecordType::replace:
    case RecordType::archived_epoch:
    case RecordType::loss:
    case RecordType::skeleton:
    case RecordType::seal:
    case RecordType::mark:
      return true;
  }
  return false;
}

std::size_t begin_record(std::vector<std::byte>& out) {
  const std::size_t start = out.size();
  out.resize(start + kRecordPrefixBytes);
  return start;
}

std::uint64_t finish_record(std::vector<std::byte>& out, std::size_t start,
                            const RecordHead& head) {
  VMSHADOW_ASSERT(out.size() >= start + kRecordPrefixBytes);
  const ByteSpan body = ByteSpan(out).subspan(start + kRecordPrefixBytes);
  VMSHADOW_ASSERT(body.size() <= kRecordBodyBytesMax);
  RecordPrefixBytes prefix;
  prefix.magic = kRecordMagic;
  prefix.version = kRecordVersion;
  prefix.type = static_cast<std::uint16_t>(head.type);
  prefix.body_bytes = static_cast<std::uint32_t>(body.size());
  prefix.sequence = head.sequence;
  prefix.vm = head.vm.bytes;
  prefix.generation = head.generation.value;
  prefix.epoch = head.epoch.value;
  prefix.body_checksum = checksum64(body);
  const auto* bytes = reinterpret_cast<const std::byte*>(&prefix);
  const std::uint64_t sum =
      checksum64(ByteSpan(bytes, offsetof(RecordPrefixBytes, prefix_checksum)));
  prefix.prefix_checksum = sum;
  std::memcpy(out.data() + start, &prefix, sizeof prefix);
  return sum;
}

std::uint64_t append_record(std::vector<std::byte>& out, const RecordHead& head, ByteSpan body) {
  const std::size_t start = begin_record(out);
  append_bytes(out, body);
  return finish_record(out, start, head);
}

RecordPrefixBytes prefix_bytes(const RecordPrefix& decoded) {
  RecordPrefixBytes prefix;
  prefix.magic = kRecordMagic;
  prefix.version = kRecordVersion;
  prefix.type = static_cast<std::uint16_t>(decoded.head.type);
  prefix.body_bytes = decoded.body_bytes;
  prefix.sequence = decoded.head.sequence;
  prefix.vm = decoded.head.vm.bytes;
  prefix.generation = decoded.head.generation.value;
  prefix.epoch = decoded.head.epoch.value;
  prefix.body_checksum = decoded.body_checksum;
  prefix.prefix_checksum = decoded.prefix_checksum;
  return prefix;
}

Result<RecordPrefix> decode_prefix(ByteSpan bytes) {
  VMSHADOW_ASSERT(bytes.size() >= kRecordPrefixBytes);
  RecordPrefixBytes raw;
  std::memcpy(&raw, bytes.data(), sizeof raw);
  if (raw.magic.get() != kRecordMagic) {
    return fail(Errc::corrupt, fmt::format("not a vmshadow record (magic {:08x}, expected {:08x})",
                                           raw.magic.get(), kRecordMagic));
  }
  if (checksum64(bytes.first(offsetof(RecordPrefixBytes, prefix_checksum))) !=
      raw.prefix_checksum.get()) {
    return fail(Errc::corrupt, "record prefix fails its checksum");
  }
  if (raw.version.get() != kRecordVersion) {
    return fail(Errc::version, fmt::format("record version {}, but this program knows {}",
                                           raw.version.get(), kRecordVersion));
  }
  const auto type = static_cast<RecordType>(raw.type.get());
  if (!is_known(type)) {
    return fail(Errc::version,
                fmt::format("record type {:#05x} is unknown to this program", raw.type.get()));
  }
  if (raw.body_bytes.get() > kRecordBodyBytesMax) {
    return fail(Errc::corrupt, fmt::format("record body of {} bytes is over the limit of {}",
                                           raw.body_bytes.get(), kRecordBodyBytesMax));
  }
  RecordPrefix prefix;
  prefix.head.type = type;
  prefix.head.sequence = raw.sequence.get();
  prefix.head.vm.bytes = raw.vm;
  prefix.head.generation = Generation{raw.generation.get()};
  prefix.head.epoch = Epoch{raw.epoch.get()};
  prefix.body_bytes = raw.body_bytes.get();
  prefix.body_checksum = raw.body_checksum.get();
  prefix.prefix_checksum = raw.prefix_checksum.get();
  return prefix;
}

Status check_body(const RecordPrefix& prefix, ByteSpan body) {
  if (body.size() != prefix.body_bytes) {
    return fail(Errc::corrupt, fmt::format("record body has {} bytes, its prefix says {}",
                                           body.size(), prefix.body_bytes));
  }
  if (checksum64(body) != prefix.body_checksum) {
    return fail(Errc::corrupt, "record body fails its checksum");
  }
  return {};
}

std::uint64_t extend_chain(std::uint64_t chain, std::uint64_t prefix_checksum) {
  struct {
    le64 chain, sum;
  } link;
  link.chain = chain;
  link.sum = prefix_checksum;
  return checksum64(ByteSpan(reinterpret_cast<const std::byte*>(&link), sizeof link));
}

}  // namespace vmshadow::format
