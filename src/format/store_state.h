// Records in which a store says what it keeps: vm_state, segment_list, replace, archived_epoch,
// loss. Pure encode and decode.
//
//   vm_state        a VM's kept epochs, pins and policy, whole, each time they change; the newest
//   one
//                   counts. Epochs from `next_epoch` on are kept until a later vm_state says
//                   otherwise.
//   segment_list    every segment there is, at the start of each journal segment
//   replace         archives became part of the store, and what they were made from left it
//   archived_epoch  the numbers of one kept epoch, in an archive
//   loss            what of a kept epoch was damaged before the rest was archived, in an archive
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <vmshadow/clock.h>
#include <vmshadow/machine.h>
#include <vmshadow/result.h>
#include <vmshadow/types.h>

#include "format/journal.h"
#include "format/record.h"

namespace vmshadow::format {

inline constexpr std::size_t kKeptRangesMax = std::size_t{1} << 16;
inline constexpr std::size_t kPinsMax = 4096;
/// The farthest a policy reaches back. Beyond 2^33 s its nanoseconds would not fit 64 bits.
inline constexpr std::uint64_t kReachSecondsMax = std::uint64_t{1} << 33;

/// vm_state: this, then range_count KeptRangeBytes, then pin_count epochs (le64), then the name.
/// The VM is in the prefix; generation there is the newest granted.
struct VmStateBytes {
  le64 version;     ///< rises with each vm_state of a VM
  le64 next_epoch;  ///< says nothing about epochs from this number on
  le64 window_s;    ///< policy, see store/retention.h; each at most kReachSecondsMax
  le64 minutely_s;
  le64 hourly_s;
  le64 daily_s;
  le64 quota_bytes;  ///< 0: none
  le32 range_count;  ///< at most kKeptRangesMax
  le32 pin_count;    ///< at most kPinsMax
  le16 name_bytes;
  le16 flags;  ///< bit 0: the policy is this VM's own, else the store's at that time; others 0
  le32 reserved;
  le64 durable_segment;
  le64 durable_offset;
};
static_assert(sizeof(VmStateBytes) == 88);
struct KeptRangeBytes {
  le64 first;
  le64 last;  ///< inclusive
};
static_assert(sizeof(VmStateBytes) + kKeptRangesMax * sizeof(KeptRangeBytes) +
                  kPinsMax * sizeof(le64) + kVmNameBytesMax <=
              kRecordBodyBytesMax);

struct KeptRange {
  Epoch first;
  Epoch last;  ///< inclusive
  bool operator==(const KeptRange&) const = default;
};
struct VmState {
  std::uint64_t version{};
  std::string vm_name;
  Epoch next_epoch;
  std::uint64_t window_s{}, minutely_s{}, hourly_s{}, daily_s{};
  bool own_policy{};
  std::uint64_t quota_bytes{};
  std::vector<KeptRange> kept;  ///< rising, disjoint, below next_epoch
  std::vector<Epoch> pins;      ///< rising
  JournalPosition durable;
  bool operator==(const VmState&) const = default;
  [[nodiscard]] bool keeps(Epoch epoch) const;
};
void append_body(std::vector<std::byte>& out, const VmState& state);
/// Checks order, bounds and the name.
[[nodiscard]] Result<VmState> decode_vm_state(ByteSpan body);

/// A segment as lists name it.
struct SegmentEntryBytes {
  le64 segment;
  le64 bytes;  ///< of the file; 0 for the journal segment that is being written
  le16 kind;
  le16 reserved16;
  le32 reserved32;
};
static_assert(sizeof(SegmentEntryBytes) == 24);
struct SegmentEntry {
  SegmentId segment;
  std::uint64_t bytes{};
  SegmentKind kind{};
  bool operator==(const SegmentEntry&) const = default;
};
/// segment_list: this, then the segments there are, rising, the list's own last. The first record
/// of a journal segment; behind it vm_count vm_states, all of it durable before anything else is
/// written.
struct SegmentListBytes {
  le32 count;  ///< at most kSegmentEntriesMax
  le32 vm_count;
};
static_assert(sizeof(SegmentListBytes) == 8);
inline constexpr std::size_t kSegmentEntriesMax =
    (kRecordBodyBytesMax - sizeof(SegmentListBytes)) / sizeof(SegmentEntryBytes);
struct SegmentList {
  std::vector<SegmentEntry> segments;
  std::uint32_t vm_count{};
  bool operator==(const SegmentList&) const = default;
};
void append_body(std::vector<std::byte>& out, const SegmentList& list);
[[nodiscard]] Result<SegmentList> decode_segment_list(ByteSpan body);

/// replace: this, then removed_count segment ids (le64, rising), then added_count
/// SegmentEntryBytes, rising, all of them archives, none of them removed. Also the first record of
/// each archive, which so names its sources.
struct ReplaceBytes {
  le32 removed_count;
  le32 added_count;
  le64 durable_segment;
  le64 durable_offset;
};
static_assert(sizeof(ReplaceBytes) == 24);
struct Replace {
  std::vector<SegmentId> removed;
  std::vector<SegmentEntry> added;
  JournalPosition durable;
  bool operator==(const Replace&) const = default;
};
void append_body(std::vector<std::byte>& out, const Replace& replace);
[[nodiscard]] Result<Replace> decode_replace(ByteSpan body);

/// archived_epoch: VM, generation and epoch are in the prefix.
struct ArchivedEpochBytes {
  le64 committed_wall_ns;
  le64 cut_wall_ns;
  le64 pages;
  le64 stored_bytes;
  le64 device_bytes;
  le32 flags;  ///< bit 0: full; others 0
  le32 reserved;
};
static_assert(sizeof(ArchivedEpochBytes) == 48);
struct ArchivedEpoch {
  WallTime committed_wall;
  WallTime cut_wall;
  std::uint64_t pages{};
  std::uint64_t stored_bytes{};
  std::uint64_t device_bytes{};
  bool full{};
  bool operator==(const ArchivedEpoch&) const = default;
};
void append_body(std::vector<std::byte>& out, const ArchivedEpoch& epoch);
[[nodiscard]] Result<ArchivedEpoch> decode_archived_epoch(ByteSpan body);

/// loss: this, then text_bytes of UTF-8. VM, generation and epoch are in the prefix. Whoever reads
/// the epoch is told what was wrong, though the damaged bytes themselves were given up.
struct LossBytes {
  le64 segment;  ///< where the damage was
  le64 offset;
  le64 bytes;  ///< how much was unusable; 0: unknown
  le16 kind;
  le16 text_bytes;  ///< at most kLostTextBytesMax
  le32 reserved;
};
static_assert(sizeof(LossBytes) == 32);
enum class LossKind : std::uint16_t {
  own = 1,   ///< costs the epoch alone: its device state, its epoch_end, its commit
  base = 2,  ///< costs the epoch and those that build on it: its pages, its machine
};
struct Loss {
  JournalPosition at;
  std::uint64_t bytes{};
  LossKind kind{};
  std::string what;
  bool operator==(const Loss&) const = default;
};
void append_body(std::vector<std::byte>& out, const Loss& loss);
[[nodiscard]] Result<Loss> decode_loss(ByteSpan body);

}  // namespace vmshadow::format
