// The end of a full segment: its records once more without their payload, so that a store is opened
// by reading a few per cent of it. Pure.
//
//   records … │ skeleton record(s) │ pad up to a block │ seal, the last kSealBlockBytes of the file
//
// A skeleton's body is a list of entries, one for each record before the skeleton but pads and
// marks, in order:
//
//   unit (4, the record's offset / 8) │ meta bytes (4) │ the record's prefix (64) │ meta
//
// `meta` is the front of the record's body, as much as the index needs of it (skeleton_meta_bytes).
// A body too large to stand here again has kMetaInRecord for its meta bytes, and no meta: read the
// record. The skeleton holds nothing that the records do not: it may be lost.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include <vmshadow/result.h>
#include <vmshadow/types.h>

#include "format/journal.h"
#include "format/record.h"

namespace vmshadow::format {

/// A seal stands alone in the last block of its segment; behind it are zero bytes to the end.
inline constexpr std::size_t kSealBlockBytes = 4096;
/// A new skeleton record is begun when a body would grow over this.
inline constexpr std::size_t kSkeletonBodyBytes = std::size_t{1} << 20;
inline constexpr std::uint32_t kMetaInRecord = 0xffffffff;

struct SkeletonEntryBytes {
  le32 unit;
  le32 meta_bytes;
  RecordPrefixBytes prefix;
};
static_assert(sizeof(SkeletonEntryBytes) == 72);

struct SkeletonEntry {
  std::uint64_t offset{};  ///< of the record in its segment
  RecordPrefix prefix;
  std::optional<ByteSpan> meta;  ///< nullopt: in the record itself
};

/// How many bytes from the front of a body the index needs.
[[nodiscard]] std::size_t skeleton_meta_bytes(RecordType type, ByteSpan body);

/// Gathers a segment's entries into skeleton bodies.
class SkeletonWriter {
 public:
  /// `record` is a whole record at `offset` of the segment, of any type: pads, marks, and what a
  /// segment ends with, are left out. Records come in order.
  void add(std::uint64_t offset, ByteSpan record);
  /// The same of a decoded one. A body that is shorter than the prefix says stays in the record.
  void add(std::uint64_t offset, const RecordPrefix& prefix, ByteSpan body);
  /// The bodies of the skeleton records so far; leaves the writer empty.
  [[nodiscard]] std::vector<std::vector<std::byte>> take();
  [[nodiscard]] std::uint64_t record_count() const { return records_; }
  /// Where it is now, to come back to if what was added since does not stay in the segment.
  struct Mark {
    std::size_t bodies{};
    std::size_t last_bytes{};
    std::uint64_t records{};
  };
  [[nodiscard]] Mark mark() const;
  void rewind(const Mark& mark);
  [[nodiscard]] std::size_t memory_bytes() const;

 private:
  void add(std::uint64_t offset, const RecordPrefixBytes& prefix, ByteSpan body);
  std::vector<std::vector<std::byte>> bodies_;
  std::uint64_t records_ = 0;
};

/// Takes the entry at the front of a skeleton body, whose record must not begin before
/// `offset_min`.
[[nodiscard]] Result<SkeletonEntry> read_skeleton_entry(BodyReader& reader,
                                                        std::uint64_t offset_min);

/// Calls visit(const SkeletonEntry&) for each entry of one skeleton body; its spans point into
/// `body`. Errc::corrupt (Errc::version for a record of another version) for anything that is not a
/// list of entries, records that overlap or a meta of another length than skeleton_meta_bytes():
/// what was visited until then counts for nothing.
template <class Visit>
[[nodiscard]] Status for_each_skeleton_entry(ByteSpan body, Visit&& visit) {
  BodyReader reader(body);
  std::uint64_t end = kSegmentHeadBytes;
  while (!reader.empty()) {
    VMSHADOW_ASSIGN(const SkeletonEntry entry, read_skeleton_entry(reader, end));
    end = entry.offset + kRecordPrefixBytes + entry.prefix.body_bytes;
    visit(entry);
  }
  return {};
}

/// seal: no VM, generation or epoch in the prefix.
struct SealBytes {
  le64 segment;
  le64 skeleton_offset;  ///< where the first skeleton record stands
  le64 skeleton_count;   ///< skeleton records, one right behind the other
  le64 skeleton_chain;   ///< extend_chain() over them
  le64 record_count;     ///< entries in them together
  SegmentSalt salt;      ///< of the segment's head: what was in the file before has none of this
};
static_assert(sizeof(SealBytes) == 56);
static_assert(offsetof(SealBytes, salt) == 40);
struct Seal {
  SegmentId segment;
  std::uint64_t skeleton_offset{};
  std::uint64_t skeleton_count{};
  std::uint64_t skeleton_chain{};
  std::uint64_t record_count{};
  SegmentSalt salt{};
  bool operator==(const Seal&) const = default;
};
void append_body(std::vector<std::byte>& out, const Seal& seal);
/// Checks that the numbers can be those of a segment: an offset that can hold a record, no more
/// skeleton records than entries.
[[nodiscard]] Result<Seal> decode_seal(ByteSpan body);

/// What follows a segment's last record, which ends at `end` (a multiple of kRecordAlignment): the
/// skeleton, a pad, the seal with the `salt` of the segment's head. The segment then is whole, and
/// a multiple of kSealBlockBytes long.
[[nodiscard]] std::vector<std::byte> encode_segment_end(SegmentId segment, std::uint64_t end,
                                                        SkeletonWriter& skeleton,
                                                        JournalPosition durable,
                                                        const SegmentSalt& salt);

}  // namespace vmshadow::format
