#include "format/skeleton.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/assert.h"
#include "format/epoch_records.h"
#include "format/sealed_record.h"

namespace vmshadow::format {
namespace {

/// Larger bodies are not repeated.
constexpr std::size_t kMetaBytesMax = kSkeletonBodyBytes / 2;

void align(std::vector<std::byte>& out) { out.resize(out.size() + alignment_gap(out.size())); }

/// `front` is the body's, at least its meta or its type's head.
std::size_t meta_bytes(RecordType type, std::size_t body_bytes, ByteSpan front) {
  switch (type) {
    case RecordType::page_group:
      if (front.size() < sizeof(PageGroupHeadBytes)) return body_bytes;
      return std::min(body_bytes, page_group_keys_bytes(load<le16>(front.data())));
    case RecordType::device_state:
      return 0;
    case RecordType::sealed_machine:
    case RecordType::sealed_page_group:
    case RecordType::sealed_device_state:
      return std::min(body_bytes, sealed_front_bytes(type, front));
    default:
      return body_bytes;
  }
}

/// A segment's own end, and what means nothing.
bool is_left_out(RecordType type) {
  return type == RecordType::pad || type == RecordType::mark || type == RecordType::skeleton ||
         type == RecordType::seal;
}

tl::unexpected<Error> malformed_skeleton() {
  return fail(Errc::corrupt, "malformed skeleton record");
}

}  // namespace

std::size_t skeleton_meta_bytes(RecordType type, ByteSpan body) {
  return meta_bytes(type, body.size(), body);
}

void SkeletonWriter::add(std::uint64_t offset, ByteSpan record) {
  VMSHADOW_ASSERT(record.size() >= kRecordPrefixBytes);
  RecordPrefixBytes prefix;
  std::memcpy(&prefix, record.data(), sizeof prefix);
  add(offset, prefix, record.subspan(kRecordPrefixBytes));
}

void SkeletonWriter::add(std::uint64_t offset, const RecordPrefix& decoded, ByteSpan body) {
  add(offset, prefix_bytes(decoded), body);
}

void SkeletonWriter::add(std::uint64_t offset, const RecordPrefixBytes& prefix, ByteSpan body) {
  VMSHADOW_ASSERT(alignment_gap(offset) == 0 && offset >= kSegmentHeadBytes);
  VMSHADOW_ASSERT(offset < kSegmentBytesMax);
  const auto type = static_cast<RecordType>(prefix.type.get());
  if (is_left_out(type)) return;
  VMSHADOW_ASSERT(body.size() <= prefix.body_bytes.get());
  const ByteSpan meta = body.first(skeleton_meta_bytes(type, body));
  const bool repeated = meta.size() <= kMetaBytesMax && body.size() == prefix.body_bytes.get();
  const std::size_t bytes = sizeof(SkeletonEntryBytes) + (repeated ? meta.size() : 0);
  if (bodies_.empty() || bodies_.back().size() + bytes > kSkeletonBodyBytes) {
    bodies_.emplace_back();
  }
  std::vector<std::byte>& out = bodies_.back();
  SkeletonEntryBytes entry;
  entry.unit = static_cast<std::uint32_t>(offset / kRecordAlignment);
  entry.meta_bytes = repeated ? static_cast<std::uint32_t>(meta.size()) : kMetaInRecord;
  entry.prefix = prefix;
  append_struct(out, entry);
  if (repeated) append_bytes(out, meta);
  ++records_;
}

std::vector<std::vector<std::byte>> SkeletonWriter::take() {
  records_ = 0;
  return std::exchange(bodies_, {});
}

SkeletonWriter::Mark SkeletonWriter::mark() const {
  return {bodies_.size(), bodies_.empty() ? 0 : bodies_.back().size(), records_};
}

void SkeletonWriter::rewind(const Mark& mark) {
  VMSHADOW_ASSERT(mark.bodies <= bodies_.size());
  bodies_.resize(mark.bodies);
  if (!bodies_.empty()) bodies_.back().resize(mark.last_bytes);
  records_ = mark.records;
}

std::size_t SkeletonWriter::memory_bytes() const {
  std::size_t bytes = 0;
  for (const auto& body : bodies_) bytes += body.capacity();
  return bytes;
}

Result<SkeletonEntry> read_skeleton_entry(BodyReader& reader, std::uint64_t offset_min) {
  SkeletonEntryBytes bytes;
  if (!reader.read(bytes)) return malformed_skeleton();
  SkeletonEntry entry;
  entry.offset = std::uint64_t{bytes.unit.get()} * kRecordAlignment;
  VMSHADOW_ASSIGN(entry.prefix, decode_prefix(std::as_bytes(std::span(&bytes.prefix, 1))));
  const RecordType type = entry.prefix.head.type;
  if (entry.offset < offset_min || is_left_out(type)) return malformed_skeleton();
  if (bytes.meta_bytes.get() == kMetaInRecord) return entry;
  ByteSpan meta;
  if (!reader.read_bytes(bytes.meta_bytes.get(), meta) ||
      meta.size() != meta_bytes(type, entry.prefix.body_bytes, meta)) {
    return malformed_skeleton();
  }
  entry.meta = meta;
  return entry;
}

void append_body(std::vector<std::byte>& out, const Seal& seal) {
  SealBytes bytes;
  bytes.segment = seal.segment.value;
  bytes.skeleton_offset = seal.skeleton_offset;
  bytes.skeleton_count = seal.skeleton_count;
  bytes.skeleton_chain = seal.skeleton_chain;
  bytes.record_count = seal.record_count;
  bytes.salt = seal.salt;
  append_struct(out, bytes);
}

Result<Seal> decode_seal(ByteSpan body) {
  BodyReader reader(body);
  SealBytes bytes;
  if (!reader.read(bytes) || !reader.empty()) return fail(Errc::corrupt, "malformed seal record");
  const Seal seal{SegmentId{bytes.segment.get()}, bytes.skeleton_offset.get(),
                  bytes.skeleton_count.get(),     bytes.skeleton_chain.get(),
                  bytes.record_count.get(),       bytes.salt};
  if (seal.skeleton_offset < kSegmentHeadBytes || seal.skeleton_offset >= kSegmentBytesMax ||
      alignment_gap(seal.skeleton_offset) != 0 || seal.skeleton_count > seal.record_count ||
      (seal.skeleton_count == 0) != (seal.record_count == 0) ||
      seal.record_count > kSegmentBytesMax / kRecordPrefixBytes) {
    return fail(Errc::corrupt, "malformed seal record");
  }
  return seal;
}

std::vector<std::byte> encode_segment_end(SegmentId segment, std::uint64_t end,
                                          SkeletonWriter& skeleton, JournalPosition durable,
                                          const SegmentSalt& salt) {
  VMSHADOW_ASSERT(alignment_gap(end) == 0 && end >= kSegmentHeadBytes);
  Seal seal;
  seal.segment = segment;
  seal.skeleton_offset = end;
  seal.record_count = skeleton.record_count();
  seal.salt = salt;
  std::vector<std::byte> out;
  for (const std::vector<std::byte>& body : skeleton.take()) {
    const std::uint64_t sum = append_record(out, {RecordType::skeleton, 0, {}, {}, {}}, body);
    seal.skeleton_chain = extend_chain(seal.skeleton_chain, sum);
    ++seal.skeleton_count;
    align(out);
  }
  append_pad(out, end + out.size(), kSealBlockBytes, durable);
  const std::size_t block = out.size();
  std::vector<std::byte> body;
  append_body(body, seal);
  append_record(out, {RecordType::seal, 0, {}, {}, {}}, body);
  out.resize(block + kSealBlockBytes);
  VMSHADOW_ASSERT(end + out.size() <= kSegmentBytesMax);
  return out;
}

}  // namespace vmshadow::format
