#include "format/journal.h"

#include <fmt/format.h>

#include <cstring>

#include "base/assert.h"
#include "base/hash.h"

namespace vmshadow::format {
namespace {

tl::unexpected<Error> malformed(std::string_view record) {
  return fail(Errc::corrupt, fmt::format("malformed {} record", record));
}

/// What a record takes that fills a segment from `offset` up to a block and is not shorter than
/// `bytes_min`.
std::size_t filler_bytes(std::uint64_t offset, std::size_t block_bytes, std::size_t bytes_min) {
  VMSHADOW_ASSERT(alignment_gap(offset) == 0 && alignment_gap(block_bytes) == 0);
  VMSHADOW_ASSERT(block_bytes >= bytes_min);
  const std::size_t gap = block_bytes - static_cast<std::size_t>(offset % block_bytes);
  return gap < bytes_min ? gap + block_bytes : gap;
}

}  // namespace

std::vector<std::byte> encode_segment_head(const SegmentHead& head) {
  SegmentHeadBytes bytes{};
  bytes.magic = kSegmentMagic;
  bytes.version = kStoreVersion;
  bytes.kind = static_cast<std::uint16_t>(head.kind);
  bytes.store = head.store;
  bytes.segment = head.segment.value;
  bytes.created_wall_ns = static_cast<std::uint64_t>(head.created_wall.ns);
  const ByteSpan whole = std::as_bytes(std::span(&bytes, 1));
  bytes.head_checksum = checksum64(whole.first(offsetof(SegmentHeadBytes, head_checksum)));
  bytes.salt = head.salt;
  bytes.salt_checksum = checksum64(whole.first(offsetof(SegmentHeadBytes, salt_checksum)));
  std::vector<std::byte> out(kSegmentHeadBytes);
  std::memcpy(out.data(), &bytes, sizeof bytes);
  return out;
}

Result<SegmentHead> decode_segment_head(ByteSpan bytes) {
  if (bytes.size() < kSegmentHeadBytes) {
    return fail(Errc::corrupt, "segment is shorter than its head");
  }
  SegmentHeadBytes raw;
  std::memcpy(&raw, bytes.data(), sizeof raw);
  if (raw.magic.get() != kSegmentMagic) return fail(Errc::corrupt, "not a vmshadow segment");
  if (checksum64(bytes.first(offsetof(SegmentHeadBytes, head_checksum))) !=
      raw.head_checksum.get()) {
    return fail(Errc::corrupt, "segment head fails its checksum");
  }
  if (raw.version.get() != kStoreVersion) {
    return fail(Errc::version,
                fmt::format("segment of store version {}, but this program knows {}; use {} "
                            "vmshadow",
                            raw.version.get(), kStoreVersion,
                            raw.version.get() > kStoreVersion ? "a newer" : "an older"));
  }
  if (checksum64(bytes.first(offsetof(SegmentHeadBytes, salt_checksum))) !=
      raw.salt_checksum.get()) {
    return fail(Errc::corrupt, "segment head's salt fails its checksum");
  }
  const auto kind = static_cast<SegmentKind>(raw.kind.get());
  if (kind != SegmentKind::journal && kind != SegmentKind::archive) {
    return fail(Errc::corrupt, fmt::format("segment of unknown kind {}", raw.kind.get()));
  }
  if (raw.reserved.get() != 0) {
    return fail(Errc::corrupt, "segment head's reserved bytes are not 0");
  }
  return SegmentHead{raw.store, SegmentId{raw.segment.get()},
                     WallTime{static_cast<std::int64_t>(raw.created_wall_ns.get())}, kind,
                     raw.salt};
}

std::string_view segment_kind_name(SegmentKind kind) {
  return kind == SegmentKind::journal ? "journal" : "archive";
}

void append_body(std::vector<std::byte>& out, const Commit& commit) {
  CommitBytes bytes;
  bytes.committed_wall_ns = static_cast<std::uint64_t>(commit.committed_wall.ns);
  bytes.chain = commit.chain;
  bytes.durable_segment = commit.durable.segment.value;
  bytes.durable_offset = commit.durable.offset.value;
  append_struct(out, bytes);
}

Result<Commit> decode_commit(ByteSpan body) {
  BodyReader reader(body);
  CommitBytes bytes;
  if (!reader.read(bytes) || !reader.empty()) return malformed("commit");
  Commit commit;
  commit.committed_wall = WallTime{static_cast<std::int64_t>(bytes.committed_wall_ns.get())};
  commit.chain = bytes.chain.get();
  commit.durable = {SegmentId{bytes.durable_segment.get()},
                    SegmentOffset{bytes.durable_offset.get()}};
  return commit;
}

void append_body(std::vector<std::byte>& out, const Grant& grant) {
  VMSHADOW_ASSERT(is_valid_vm_name(grant.vm_name));
  GrantBytes bytes;
  bytes.granted_wall_ns = static_cast<std::uint64_t>(grant.granted_wall.ns);
  bytes.name_bytes = static_cast<std::uint16_t>(grant.vm_name.size());
  bytes.durable_segment = grant.durable.segment.value;
  bytes.durable_offset = grant.durable.offset.value;
  append_struct(out, bytes);
  append_bytes(out, std::as_bytes(std::span(grant.vm_name)));
}

Result<Grant> decode_grant(ByteSpan body) {
  BodyReader reader(body);
  GrantBytes bytes;
  ByteSpan name;
  if (!reader.read(bytes) || bytes.reserved16.get() != 0 || bytes.reserved32.get() != 0 ||
      !reader.read_bytes(bytes.name_bytes.get(), name) || !reader.empty()) {
    return malformed("grant");
  }
  Grant grant;
  grant.granted_wall = WallTime{static_cast<std::int64_t>(bytes.granted_wall_ns.get())};
  grant.vm_name.assign(reinterpret_cast<const char*>(name.data()), name.size());
  grant.durable = {SegmentId{bytes.durable_segment.get()},
                   SegmentOffset{bytes.durable_offset.get()}};
  if (!is_valid_vm_name(grant.vm_name)) return malformed("grant");
  return grant;
}

void append_body(std::vector<std::byte>& out, const Pad& pad) {
  PadBytes bytes;
  bytes.durable_segment = pad.durable.segment.value;
  bytes.durable_offset = pad.durable.offset.value;
  append_struct(out, bytes);
}

Result<Pad> decode_pad(ByteSpan body) {
  BodyReader reader(body);
  PadBytes bytes;
  // What follows only takes up room.
  if (!reader.read(bytes) || body.size() > kRecordBodyBytesMax) return malformed("pad");
  return Pad{{SegmentId{bytes.durable_segment.get()}, SegmentOffset{bytes.durable_offset.get()}}};
}

std::size_t pad_bytes(std::uint64_t offset, std::size_t block_bytes) {
  if (offset % block_bytes == 0) return 0;
  return filler_bytes(offset, block_bytes, kPadRecordBytesMin);
}

void append_pad(std::vector<std::byte>& out, std::uint64_t offset, std::size_t block_bytes,
                JournalPosition durable) {
  const std::size_t bytes = pad_bytes(offset, block_bytes);
  if (bytes == 0) return;
  std::vector<std::byte> body;
  append_body(body, Pad{durable});
  body.resize(bytes - kRecordPrefixBytes);
  append_record(out, {RecordType::pad, 0, {}, {}, {}}, body);
}

void append_body(std::vector<std::byte>& out, const Mark& mark) {
  MarkBytes bytes;
  bytes.segment = mark.begin.segment.value;
  bytes.begin = mark.begin.offset.value;
  bytes.salt = mark.salt;
  bytes.chain = mark.chain;
  bytes.durable_segment = mark.durable.segment.value;
  bytes.durable_offset = mark.durable.offset.value;
  append_struct(out, bytes);
}

Result<Mark> decode_mark(ByteSpan body) {
  BodyReader reader(body);
  MarkBytes bytes;
  // What follows only takes up room.
  if (!reader.read(bytes) || body.size() > kRecordBodyBytesMax) return malformed("mark");
  Mark mark;
  mark.begin = {SegmentId{bytes.segment.get()}, SegmentOffset{bytes.begin.get()}};
  mark.salt = bytes.salt;
  mark.chain = bytes.chain.get();
  mark.durable = {SegmentId{bytes.durable_segment.get()},
                  SegmentOffset{bytes.durable_offset.get()}};
  return mark;
}

std::size_t mark_bytes(std::uint64_t offset, std::size_t block_bytes) {
  return filler_bytes(offset, block_bytes, kMarkRecordBytesMin);
}

void append_mark(std::vector<std::byte>& out, std::uint64_t offset, std::size_t block_bytes,
                 const Mark& mark) {
  std::vector<std::byte> body;
  append_body(body, mark);
  body.resize(mark_bytes(offset, block_bytes) - kRecordPrefixBytes);
  append_record(out, {RecordType::mark, 0, {}, {}, {}}, body);
}

std::uint64_t chain_records(std::uint64_t chain, ByteSpan records) {
  while (!records.empty()) {
    VMSHADOW_ASSERT(records.size() >= kRecordPrefixBytes);
    RecordPrefixBytes prefix;
    std::memcpy(&prefix, records.data(), sizeof prefix);
    chain = extend_chain(chain, prefix.prefix_checksum.get());
    const std::size_t bytes = kRecordPrefixBytes + prefix.body_bytes.get();
    records = records.subspan(bytes + alignment_gap(bytes));
  }
  return chain;
}

}  // namespace vmshadow::format
