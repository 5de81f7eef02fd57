// A record of an epoch as the store keeps it for a VM that has a key: encrypted, but for what the
// store itself must know of it. Pure; crypt/sealed_record.h is what seals and opens.
//
//   key id │ dead pages │ front of the plain body │ nonce │ the rest of it, encrypted │ tag
//
// The front is what an index needs: head and keys of a page_group, nothing of other types. Opened,
// front and rest are the body of the plain type again. The type says that a record is sealed
// (is_sealed()); each is as much longer as kSealedExtraBytes, so the plain size is known without a
// key.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include <vmshadow/result.h>
#include <vmshadow/types.h>

#include "format/epoch_records.h"
#include "format/record.h"

namespace vmshadow::format {

/// Tells which of a VM's keys a record was sealed with. Derived from the key, which it does not
/// give away.
using KeyId = std::array<std::byte, 8>;
/// 16 lower-case hex digits.
[[nodiscard]] std::string key_id_text(const KeyId& id);

/// What a sealed body begins with.
struct SealedHeadBytes {
  KeyId key_id;
  /// Bit i: page i of the group no longer counts, for a store that moves a group without its key.
  /// Not covered by the tag; 0 of other types, and in a journal.
  le16 dead_pages;
  le16 reserved16;
  le32 reserved32;
};
static_assert(sizeof(SealedHeadBytes) == 16);

inline constexpr std::size_t kSealedNonceBytes = 24;
inline constexpr std::size_t kSealedTagBytes = 16;
/// A sealed body is so much longer than the plain one.
inline constexpr std::size_t kSealedExtraBytes =
    sizeof(SealedHeadBytes) + kSealedNonceBytes + kSealedTagBytes;
/// The longest plain body that can be sealed.
inline constexpr std::size_t kSealablePlainBytesMax = kRecordBodyBytesMax - kSealedExtraBytes;

/// The sealed form of a plain type that has one: machine, page_group, device_state.
[[nodiscard]] bool is_sealable(RecordType type);
[[nodiscard]] RecordType sealed_type(RecordType plain);

/// How much of a sealed body stays readable at its front: head, and head and keys of a page_group.
/// `front` is the body's; all of it is too short if it ends before that can be told.
[[nodiscard]] std::size_t sealed_front_bytes(RecordType type, ByteSpan front);
/// The same of the plain body that is to be sealed: how much of it stays readable.
[[nodiscard]] std::size_t plain_front_bytes(RecordType plain, ByteSpan body);
/// The bytes of the plain body of a sealed record; 0 if it is too short to be one.
[[nodiscard]] constexpr std::size_t plain_body_bytes(std::size_t sealed_body_bytes) {
  return sealed_body_bytes < kSealedExtraBytes ? 0 : sealed_body_bytes - kSealedExtraBytes;
}

/// What stays readable of a sealed record.
struct SealedFront {
  KeyId key_id{};
  std::uint16_t dead_pages{};
};
/// From the front of a body, as a skeleton keeps it.
[[nodiscard]] Result<SealedFront> decode_sealed_front(ByteSpan front);
/// A sealed page_group's head and keys, from the front of a body; dead_pages is set.
[[nodiscard]] Result<PageGroup> decode_sealed_group_keys(ByteSpan front);

/// A whole sealed body, taken apart. The spans point into it.
struct SealedBody {
  KeyId key_id{};
  std::uint16_t dead_pages{};
  ByteSpan plain_front;
  ByteSpan nonce;
  ByteSpan ciphertext;
  ByteSpan tag;
};
[[nodiscard]] Result<SealedBody> decode_sealed_body(RecordType type, ByteSpan body);
/// Sets the dead pages of a whole sealed record in memory, and its checksums.
void set_dead_pages(std::vector<std::byte>& record, std::uint16_t dead_pages);

}  // namespace vmshadow::format
