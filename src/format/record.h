// The record: the unit of both the wire and the journal. Pure encode and decode, no I/O.
//
//   ┌──────────── prefix, 64 bytes, frozen for all versions ────────────┬──── body ────┐
//   │ magic version type body_bytes sequence vm generation epoch sums   │ body_bytes   │
//   └────────────────────────────────────────────────────────────────────┴──────────────┘
//
// A reader always goes: prefix, prefix checksum, bounds, then allocate, body checksum, parse. The
// records of an epoch (types below 0x100) travel and rest byte for byte as the sidecar made them,
// but for VMs that have a key: those rest sealed (format/sealed_record.h). docs/wire-format.md and
// docs/store-format.md say the same in prose, with worked examples.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include <vmshadow/result.h>
#include <vmshadow/types.h>

#include "base/endian.h"

namespace vmshadow::format {

/// "VSR1" read as bytes.
inline constexpr std::uint32_t kRecordMagic = 0x31525356;
/// Raised when a body changes in a way an older reader would misread.
inline constexpr std::uint16_t kRecordVersion = 2;
inline constexpr std::size_t kRecordPrefixBytes = 64;
/// No body is longer. Device state is cut into pieces to respect it.
inline constexpr std::size_t kRecordBodyBytesMax = std::size_t{2} << 20;

enum class RecordType : std::uint16_t {
  // Of an epoch: made by the sidecar, shipped and stored unchanged.
  machine = 0x001,       ///< MachineDescription; the first record of a full epoch
  page_group = 0x002,    ///< up to kGroupPagesMax pages, compressed together
  zero_pages = 0x003,    ///< runs of pages that are all zero
  device_state = 0x004,  ///< a piece of the device state, in order
  epoch_end = 0x005,     ///< counts, times and the chain over all records before
  // The same, encrypted by the store (sealed_record.h): never shipped.
  sealed_machine = 0x081,
  sealed_page_group = 0x082,
  sealed_device_state = 0x084,
  // Of a connection: never stored.
  hello = 0x101,
  welcome = 0x102,
  ack = 0x103,
  refusal = 0x104,
  ping = 0x105,
  pong = 0x106,
  base_query = 0x107,   ///< what a new session may build on, asked for
  base_hashes = 0x108,  ///< hashes of its pages
  base_end = 0x109,     ///< all of them were sent, or why there are none
  // Of the journal: made by the store, never shipped.
  commit = 0x201,
  grant = 0x202,
  pad = 0x203,
  vm_state = 0x204,        ///< which of a VM's epochs are kept, its pins and its policy
  segment_list = 0x205,    ///< which segments there are
  replace = 0x206,         ///< segments that took the place of others
  archived_epoch = 0x207,  ///< what is known of a kept epoch whose commit was archived
  skeleton = 0x208,        ///< a segment's records without their payload
  seal = 0x209,            ///< the end of a segment, and where its skeleton is
  loss = 0x20a,            ///< what of a kept epoch was damaged before the rest was archived
  mark = 0x20b,            ///< the end of what one write brought
};

[[nodiscard]] bool is_known(RecordType type);
/// True for the types a sidecar ships and a store keeps, and for what the store makes of them.
[[nodiscard]] inline bool is_epoch_record(RecordType type) {
  return static_cast<std::uint16_t>(type) < 0x100;
}
/// Whether a record is one of an epoch that the store has encrypted.
[[nodiscard]] inline bool is_sealed(RecordType type) {
  return is_epoch_record(type) && (static_cast<std::uint16_t>(type) & 0x080) != 0;
}
/// What a sealed record is once it is opened; any other type is itself.
[[nodiscard]] inline RecordType plain_type(RecordType type) {
  if (!is_sealed(type)) return type;
  return static_cast<RecordType>(static_cast<std::uint16_t>(type) & ~0x080u);
}

/// The longest sentence in which a store says why something was lost.
inline constexpr std::size_t kLostTextBytesMax = 1024;

/// The prefix as it lies in memory, on the wire and on disk.
struct RecordPrefixBytes {
  le32 magic;
  le16 version;
  le16 type;
  le32 body_bytes;
  /// Place in the epoch, from 0; 0 where a type has no order.
  le32 sequence;
  std::array<std::byte, 16> vm;
  le64 generation;
  le64 epoch;
  le64 body_checksum;
  /// Over the 56 bytes before it.
  le64 prefix_checksum;
};
static_assert(sizeof(RecordPrefixBytes) == kRecordPrefixBytes);
static_assert(alignof(RecordPrefixBytes) == 1);
static_assert(offsetof(RecordPrefixBytes, vm) == 16);
static_assert(offsetof(RecordPrefixBytes, body_checksum) == 48);
static_assert(offsetof(RecordPrefixBytes, prefix_checksum) == 56);

/// What the prefix says, decoded and checked.
struct RecordHead {
  RecordType type{};
  std::uint32_t sequence{};
  VmId vm{};
  Generation generation{};
  Epoch epoch{};
};

struct RecordPrefix {
  RecordHead head;
  std::uint32_t body_bytes{};
  std::uint64_t body_checksum{};
  std::uint64_t prefix_checksum{};
};

/// Starts a record at the end of `out` by reserving its prefix; returns where. Append the body,
/// then call finish_record().
[[nodiscard]] std::size_t begin_record(std::vector<std::byte>& out);
/// Fills in the prefix reserved at `start`; the body is all that `out` holds behind it. Returns the
/// prefix checksum (what an epoch's chain is made of).
std::uint64_t finish_record(std::vector<std::byte>& out, std::size_t start, const RecordHead& head);
/// Appends a whole record.
std::uint64_t append_record(std::vector<std::byte>& out, const RecordHead& head, ByteSpan body);

/// A decoded prefix as bytes again, checksums included.
[[nodiscard]] RecordPrefixBytes prefix_bytes(const RecordPrefix& prefix);
/// Decodes and checks a prefix: magic, checksum, version, known type, body length bound. `bytes`
/// holds at least kRecordPrefixBytes. Errc::corrupt, or Errc::version for another version or a type
/// that is not known.
[[nodiscard]] Result<RecordPrefix> decode_prefix(ByteSpan bytes);
/// Checks a body against its prefix. Errc::corrupt.
[[nodiscard]] Status check_body(const RecordPrefix& prefix, ByteSpan body);

/// The chain over an epoch's records: start with 0, extend with each record's prefix checksum.
[[nodiscard]] std::uint64_t extend_chain(std::uint64_t chain, std::uint64_t prefix_checksum);

/// Appends a struct of byte-array integers.
template <class T>
void append_struct(std::vector<std::byte>& out, const T& value) {
  static_assert(std::is_trivially_copyable_v<T> && std::has_unique_object_representations_v<T>);
  const auto* first = reinterpret_cast<const std::byte*>(&value);
  out.insert(out.end(), first, first + sizeof value);
}
inline void append_bytes(std::vector<std::byte>& out, ByteSpan bytes) {
  out.insert(out.end(), bytes.begin(), bytes.end());
}

/// Reads structs off the front of a body; says so when there is not enough.
class BodyReader {
 public:
  explicit BodyReader(ByteSpan body) : rest_(body) {}
  template <class T>
  [[nodiscard]] bool read(T& value) {
    static_assert(std::is_trivially_copyable_v<T> && std::has_unique_object_representations_v<T>);
    if (rest_.size() < sizeof value) return false;
    std::memcpy(&value, rest_.data(), sizeof value);
    rest_ = rest_.subspan(sizeof value);
    return true;
  }
  [[nodiscard]] bool read_bytes(std::size_t count, ByteSpan& bytes) {
    if (rest_.size() < count) return false;
    bytes = rest_.first(count);
    rest_ = rest_.subspan(count);
    return true;
  }
  [[nodiscard]] ByteSpan rest() const { return rest_; }
  [[nodiscard]] bool empty() const { return rest_.empty(); }

 private:
  ByteSpan rest_;
};

}  // namespace vmshadow::format
