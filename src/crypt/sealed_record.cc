#include "crypt/sealed_record.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "base/assert.h"
#include "format/sealed_record.h"

namespace vmshadow::crypt {
namespace {

static_assert(kNonceBytes == format::kSealedNonceBytes && kTagBytes == format::kSealedTagBytes);

/// What the tag covers besides the encrypted bytes.
class Associated {
 public:
  Associated(const format::RecordHead& head, std::size_t body_bytes, const format::KeyId& key_id,
             ByteSpan plain_front)
      : prefix_(format::prefix_bytes({head, static_cast<std::uint32_t>(body_bytes), 0, 0})),
        pieces_{std::as_bytes(std::span(&prefix_, 1))
                    .first(offsetof(format::RecordPrefixBytes, body_checksum)),
                key_id, plain_front} {}
  Associated(const Associated&) = delete;
  Associated& operator=(const Associated&) = delete;
  [[nodiscard]] std::span<const ByteSpan> pieces() const { return pieces_; }

 private:
  format::RecordPrefixBytes prefix_;
  std::array<ByteSpan, 3> pieces_;
};

}  // namespace

std::uint64_t seal_record(const VmKey& key, const Nonce& nonce,
                          const format::RecordHead& plain_head, ByteSpan body,
                          std::vector<std::byte>& out) {
  VMSHADOW_ASSERT(body.size() <= format::kSealablePlainBytesMax);
  format::RecordHead head = plain_head;
  head.type = format::sealed_type(plain_head.type);
  const ByteSpan front = body.first(format::plain_front_bytes(plain_head.type, body));
  const ByteSpan rest = body.subspan(front.size());
  const Associated associated(head, body.size() + format::kSealedExtraBytes, key.id(), front);

  const std::size_t start = format::begin_record(out);
  format::SealedHeadBytes sealed;
  sealed.key_id = key.id();
  format::append_struct(out, sealed);
  format::append_bytes(out, front);
  format::append_bytes(out, nonce);
  const std::size_t at = out.size();
  out.resize(at + rest.size() + kTagBytes);
  const MutableByteSpan room = MutableByteSpan(out).subspan(at);
  seal(key.record_key(), nonce, associated.pieces(), rest, room.first(rest.size()),
       room.last<kTagBytes>());
  return format::finish_record(out, start, head);
}

Status open_record(const VmKeys& keys, const format::RecordPrefix& prefix, ByteSpan body,
                   std::vector<std::byte>& out) {
  VMSHADOW_ASSIGN(const format::SealedBody sealed,
                  format::decode_sealed_body(prefix.head.type, body));
  const VmKey* const key = find_key(keys, sealed.key_id);
  if (key == nullptr) {
    return fail(
        Errc::permission,
        fmt::format("it was sealed with the key {}, and the one given is {}",
                    format::key_id_text(sealed.key_id), format::key_id_text(keys.front().id())));
  }
  const Associated associated(prefix.head, body.size(), sealed.key_id, sealed.plain_front);
  Nonce nonce;
  std::copy(sealed.nonce.begin(), sealed.nonce.end(), nonce.begin());
  out.resize(sealed.plain_front.size() + sealed.ciphertext.size());
  std::copy(sealed.plain_front.begin(), sealed.plain_front.end(), out.begin());
  if (open(key->record_key(), nonce, associated.pieces(), sealed.ciphertext,
           MutableByteSpan(out).subspan(sealed.plain_front.size()),
           sealed.tag.first<kTagBytes>())) {
    return {};
  }
  out.clear();
  return fail(Errc::corrupt,
              "its tag does not match: the record was changed, or moved from another place");
}

}  // namespace vmshadow::crypt
