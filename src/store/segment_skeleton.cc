#include "store/segment_skeleton.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/assert.h"

namespace vmshadow::store {

using format::RecordType;

namespace {

/// Reads whole records at given places.
class RecordReader {
 public:
  explicit RecordReader(const ByteSource& source) : source_(source) {}

  /// The record at `offset`, checked; its body is valid until the next call.
  Result<GoodRecord> read(std::uint64_t offset) {
    bytes_.resize(format::kRecordPrefixBytes);
    if (source_.read_at(offset, bytes_) < bytes_.size()) {
      return fail(Errc::corrupt, "the segment ends inside a record's prefix");
    }
    VMSHADOW_ASSIGN(const format::RecordPrefix prefix, format::decode_prefix(bytes_));
    bytes_.resize(format::kRecordPrefixBytes + prefix.body_bytes);
    const MutableByteSpan body = MutableByteSpan(bytes_).subspan(format::kRecordPrefixBytes);
    if (source_.read_at(offset + format::kRecordPrefixBytes, body) < body.size()) {
      return fail(Errc::corrupt, "the segment ends inside a record's body");
    }
    VMSHADOW_TRY(format::check_body(prefix, body));
    return GoodRecord{offset, prefix, body};
  }

 private:
  const ByteSource& source_;
  std::vector<std::byte> bytes_;
};

std::uint64_t end_of(const GoodRecord& record) {
  const std::uint64_t end = record.offset + format::kRecordPrefixBytes + record.prefix.body_bytes;
  return end + format::alignment_gap(end);
}

/// The seal in the last block; Errc::not_found if there is nothing that looks like one.
Result<format::Seal> read_seal(RecordReader& reader, const ByteSource& source, SegmentId segment) {
  const std::uint64_t bytes = source.bytes();
  if (bytes < format::kSegmentHeadBytes + format::kSealBlockBytes ||
      bytes % format::kSealBlockBytes != 0) {
    return fail(Errc::not_found, "no seal");
  }
  const auto record = reader.read(bytes - format::kSealBlockBytes);
  if (!record) return fail(Errc::not_found, "no seal");
  if (record->prefix.head.type != RecordType::seal) return fail(Errc::not_found, "no seal");
  VMSHADOW_ASSIGN(const format::Seal seal, format::decode_seal(record->body));
  if (seal.segment != segment) return fail(Errc::corrupt, "the seal is another segment's");
  std::vector<std::byte> head_bytes(format::kSegmentHeadBytes);
  head_bytes.resize(source.read_at(0, head_bytes));
  // A head that is damaged does not say.
  if (const auto head = format::decode_segment_head(head_bytes); head && head->salt != seal.salt) {
    return fail(Errc::corrupt, "the seal is not that of the segment's head");
  }
  if (seal.skeleton_offset < format::kSegmentHeadBytes ||
      format::alignment_gap(seal.skeleton_offset) != 0 ||
      seal.skeleton_offset > bytes - format::kSealBlockBytes) {
    return fail(Errc::corrupt, "the seal names a place outside the segment");
  }
  return seal;
}

/// Calls use(body) for each skeleton record; returns where the last one ends.
template <class Use>
Result<std::uint64_t> for_each_body(RecordReader& reader, const format::Seal& seal, Use&& use) {
  std::uint64_t offset = seal.skeleton_offset;
  std::uint64_t chain = 0;
  for (std::uint64_t i = 0; i < seal.skeleton_count; ++i) {
    VMSHADOW_ASSIGN(const GoodRecord record, reader.read(offset));
    if (record.prefix.head.type != RecordType::skeleton) {
      return fail(Errc::corrupt, "a skeleton record is missing");
    }
    chain = format::extend_chain(chain, record.prefix.prefix_checksum);
    offset = end_of(record);
    VMSHADOW_TRY(use(record.body));
  }
  if (chain != seal.skeleton_chain) return fail(Errc::corrupt, "the skeleton is not the seal's");
  return offset;
}

/// What was written with the skeleton and the seal reached the disk as well: a write that was cut
/// short may have left a hole between them.
Status check_end(RecordReader& reader, const ByteSource& source, std::uint64_t skeleton_end) {
  const std::uint64_t block = source.bytes() - format::kSealBlockBytes;
  if (skeleton_end < block) {
    VMSHADOW_ASSIGN(const GoodRecord pad, reader.read(skeleton_end));
    if (pad.prefix.head.type == RecordType::pad) skeleton_end = end_of(pad);
  }
  if (skeleton_end != block) {
    return fail(Errc::corrupt, "the seal does not stand where the skeleton ends");
  }
  std::vector<std::byte> rest(format::kSealBlockBytes);
  rest.resize(source.read_at(block, rest));
  const std::size_t seal_bytes = format::kRecordPrefixBytes + sizeof(format::SealBytes);
  const bool zero = std::all_of(rest.begin() + static_cast<std::ptrdiff_t>(seal_bytes), rest.end(),
                                [](std::byte b) { return b == std::byte{}; });
  if (rest.size() < format::kSealBlockBytes || !zero) {
    return fail(Errc::corrupt, "the bytes behind the seal are not zero");
  }
  return {};
}

Status check(RecordReader& reader, const ByteSource& source, const format::Seal& seal) {
  std::uint64_t entries = 0;
  std::uint64_t next = format::kSegmentHeadBytes;
  bool sound = true;
  RecordReader whole(source);
  VMSHADOW_ASSIGN(const std::uint64_t skeleton_end, for_each_body(reader, seal, [&](ByteSpan body) {
                    return format::for_each_skeleton_entry(
                        body, [&](const format::SkeletonEntry& entry) {
                          if (!entry.meta && !whole.read(entry.offset)) sound = false;
                          const std::uint64_t end =
                              entry.offset + format::kRecordPrefixBytes + entry.prefix.body_bytes;
                          sound = sound && entry.offset >= next && end <= seal.skeleton_offset;
                          next = end;
                          ++entries;
                        });
                  }));
  if (!sound || entries != seal.record_count) {
    return fail(Errc::corrupt, "the skeleton does not match the segment");
  }
  return check_end(reader, source, skeleton_end);
}

}  // namespace

SkeletonOutcome visit_skeleton(const ByteSource& source, SegmentId segment,
                               const RecordVisitor& visit) {
  SkeletonOutcome outcome;
  RecordReader reader(source);
  const auto seal = read_seal(reader, source, segment);
  if (!seal) {
    outcome.sealed = seal.error().code != Errc::not_found;
    if (outcome.sealed) outcome.trouble = seal.error().message;
    return outcome;
  }
  outcome.sealed = true;
  outcome.seal = *seal;
  if (const auto sound = check(reader, source, *seal); !sound) {
    outcome.trouble = sound.error().message;
    return outcome;
  }
  RecordReader whole(source);
  const auto visited = for_each_body(reader, *seal, [&](ByteSpan body) -> Status {
    Status status;
    auto walked = format::for_each_skeleton_entry(body, [&](const format::SkeletonEntry& entry) {
      if (!status) return;
      if (entry.meta) {
        visit(entry.offset, entry.prefix, *entry.meta);
        return;
      }
      const auto record = whole.read(entry.offset);
      if (!record) {
        status = fail(record.error());
      } else {
        visit(entry.offset, record->prefix, record->body);
      }
    });
    if (!walked) return walked;
    return status;
  });
  VMSHADOW_ASSERT(visited.has_value());  // all of it was read just before
  outcome.visited = true;
  return outcome;
}

}  // namespace vmshadow::store
