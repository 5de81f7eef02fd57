// What the store adds to the records it is sent so that they become a journal: the segment's head,
// and the commit, grant, pad and mark records. Pure encode and decode. What a store keeps, and the
// end of a segment, are in store_state.h and skeleton.h.
//
// A segment file is one 4 KiB head followed by records, each starting at a multiple of
// kRecordAlignment. Between records there is nothing but zero bytes up to the next multiple, or a
// pad record. In a journal they come in batches, one for each write:
//
//   head │ batch: records … mark │ batch: records … mark │ …
//
// The file may have been another segment before (it was recycled): what lies behind the last batch
// is then that one's, and as whole as it was. A batch's mark tells the two apart.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include <vmshadow/clock.h>
#include <vmshadow/result.h>
#include <vmshadow/types.h>

#include "format/record.h"

namespace vmshadow::format {

inline constexpr std::size_t kSegmentHeadBytes = 4096;
inline constexpr std::size_t kRecordAlignment = 8;
/// No segment is longer: a skeleton counts a record's place in 32 bits of kRecordAlignment.
inline constexpr std::uint64_t kSegmentBytesMax = std::uint64_t{kRecordAlignment} << 32;
/// "VMSHSEG1" read as bytes.
inline constexpr std::uint64_t kSegmentMagic = 0x3147455348534d56;
/// Raised when segments change in a way an older program would misread.
inline constexpr std::uint16_t kStoreVersion = 4;

using StoreId = std::array<std::byte, 16>;
/// Drawn anew for each journal segment, from the kernel: nobody who could put bytes into the file
/// before can have known it.
using SegmentSalt = std::array<std::byte, 16>;

enum class SegmentKind : std::uint16_t {
  journal = 1,  ///< appended to, record by record, for all VMs
  archive = 2,  ///< written once, as a whole: what was still needed of other segments
};
[[nodiscard]] std::string_view segment_kind_name(SegmentKind kind);

/// The first bytes of a segment; the rest of its 4 KiB head is zero.
struct SegmentHeadBytes {
  le64 magic;
  le16 version;
  le16 kind;
  le32 reserved;
  StoreId store;
  le64 segment;
  le64 created_wall_ns;
  le64 head_checksum;  ///< over the 48 bytes before it; these have their place in all versions
  SegmentSalt salt;
  le64 salt_checksum;  ///< over the 72 bytes before it
};
static_assert(sizeof(SegmentHeadBytes) == 80);
static_assert(offsetof(SegmentHeadBytes, head_checksum) == 48);
static_assert(offsetof(SegmentHeadBytes, salt) == 56);

struct SegmentHead {
  StoreId store{};
  SegmentId segment;
  WallTime created_wall;
  SegmentKind kind = SegmentKind::journal;
  SegmentSalt salt{};  ///< of a journal segment; 0 of an archive
  bool operator==(const SegmentHead&) const = default;
};
/// kSegmentHeadBytes bytes.
[[nodiscard]] std::vector<std::byte> encode_segment_head(const SegmentHead& head);
/// Errc::corrupt, or Errc::version for a segment of another store version.
[[nodiscard]] Result<SegmentHead> decode_segment_head(ByteSpan bytes);

/// A place in the journal.
struct JournalPosition {
  SegmentId segment;
  SegmentOffset offset;
  auto operator<=>(const JournalPosition&) const = default;
};

/// commit: follows an epoch's epoch_end; once it is durable the epoch is committed. (VM, generation
/// and epoch are in the prefix.)
struct CommitBytes {
  le64 committed_wall_ns;
  le64 chain;            ///< that of the epoch_end it commits
  le64 durable_segment;  ///< everything before this position was known durable when this was
  le64 durable_offset;   ///< written: a bad byte before it is damage, behind it a torn tail
};
static_assert(sizeof(CommitBytes) == 32);
struct Commit {
  WallTime committed_wall;
  std::uint64_t chain{};
  JournalPosition durable;
  bool operator==(const Commit&) const = default;
};
void append_body(std::vector<std::byte>& out, const Commit& commit);
[[nodiscard]] Result<Commit> decode_commit(ByteSpan body);

/// grant: a generation was given out (VM and generation are in the prefix). Body: this, then the
/// VM's name.
struct GrantBytes {
  le64 granted_wall_ns;
  le16 name_bytes;
  le16 reserved16;
  le32 reserved32;
  le64 durable_segment;
  le64 durable_offset;
};
static_assert(sizeof(GrantBytes) == 32);
struct Grant {
  WallTime granted_wall;
  std::string vm_name;
  JournalPosition durable;
  bool operator==(const Grant&) const = default;
};
void append_body(std::vector<std::byte>& out, const Grant& grant);
/// Checks the name against is_valid_vm_name().
[[nodiscard]] Result<Grant> decode_grant(ByteSpan body);

/// pad: means nothing by itself. It fills the rest of a 4 KiB block before a seal, and carries a
/// durable position. VM, generation and epoch in the prefix are 0. Body: this, then any number of
/// unused bytes up to kRecordBodyBytesMax.
struct PadBytes {
  le64 durable_segment;
  le64 durable_offset;
};
static_assert(sizeof(PadBytes) == 16);
struct Pad {
  JournalPosition durable;
  bool operator==(const Pad&) const = default;
};
void append_body(std::vector<std::byte>& out, const Pad& pad);
[[nodiscard]] Result<Pad> decode_pad(ByteSpan body);
/// The shortest pad record. A shorter gap cannot be filled.
inline constexpr std::size_t kPadRecordBytesMin = kRecordPrefixBytes + sizeof(PadBytes);
/// The bytes of the pad that takes a segment from `offset` to a multiple of `block_bytes`: 0 if it
/// is at one, else at least kPadRecordBytesMin. Both are multiples of kRecordAlignment; a block
/// holds the shortest pad.
[[nodiscard]] std::size_t pad_bytes(std::uint64_t offset, std::size_t block_bytes);
/// Appends that pad, if any.
void append_pad(std::vector<std::byte>& out, std::uint64_t offset, std::size_t block_bytes,
                JournalPosition durable);

/// mark: ends a batch of a journal segment, which is all that one write brought. In a last segment
/// a batch counts only with its mark, and only if the records in front of it are those that it was
/// made for. VM, generation and epoch in the prefix are 0. Body: this, then any number of unused
/// bytes, which fill the rest of a 4 KiB block.
struct MarkBytes {
  le64 segment;
  le64 begin;  ///< offset of the batch's first record
  SegmentSalt salt;
  le64 chain;  ///< extend_chain() over the batch's records, without the mark
  le64 durable_segment;
  le64 durable_offset;
};
static_assert(sizeof(MarkBytes) == 56);
static_assert(offsetof(MarkBytes, salt) == 16);
struct Mark {
  JournalPosition begin;  ///< of the batch
  SegmentSalt salt{};
  std::uint64_t chain{};
  JournalPosition durable;
  bool operator==(const Mark&) const = default;
};
void append_body(std::vector<std::byte>& out, const Mark& mark);
[[nodiscard]] Result<Mark> decode_mark(ByteSpan body);
inline constexpr std::size_t kMarkRecordBytesMin = kRecordPrefixBytes + sizeof(MarkBytes);
/// The bytes of the mark that takes a segment from `offset` to a multiple of `block_bytes`, as
/// pad_bytes(), but never 0.
[[nodiscard]] std::size_t mark_bytes(std::uint64_t offset, std::size_t block_bytes);
/// Appends the mark of a batch whose records end at `offset`.
void append_mark(std::vector<std::byte>& out, std::uint64_t offset, std::size_t block_bytes,
                 const Mark& mark);
/// extend_chain() over whole records that lie behind one another, each aligned.
[[nodiscard]] std::uint64_t chain_records(std::uint64_t chain, ByteSpan records);

/// Bytes from `offset` to the next record boundary.
[[nodiscard]] constexpr std::size_t alignment_gap(std::uint64_t offset) {
  return static_cast<std::size_t>((kRecordAlignment - offset % kRecordAlignment) %
                                  kRecordAlignment);
}

}  // namespace vmshadow::format
