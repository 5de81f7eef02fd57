#include "format/sealed_record.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "base/assert.h"

namespace vmshadow::format {
namespace {

tl::unexpected<Error> malformed_seal(std::string_view what) {
  return fail(Errc::corrupt, fmt::format("malformed sealed record: {}", what));
}

}  // namespace

std::string key_id_text(const KeyId& id) {
  std::string text;
  for (const std::byte byte : id) text += fmt::format("{:02x}", std::to_integer<unsigned>(byte));
  return text;
}

bool is_sealable(RecordType type) {
  return type == RecordType::machine || type == RecordType::page_group ||
         type == RecordType::device_state;
}

RecordType sealed_type(RecordType plain) {
  VMSHADOW_ASSERT(is_sealable(plain));
  return static_cast<RecordType>(static_cast<std::uint16_t>(plain) | 0x080u);
}

std::size_t plain_front_bytes(RecordType plain, ByteSpan body) {
  if (plain != RecordType::page_group) return 0;
  if (body.size() < sizeof(PageGroupHeadBytes)) return body.size();
  return std::min(body.size(), page_group_keys_bytes(load<le16>(body.data())));
}

std::size_t sealed_front_bytes(RecordType type, ByteSpan front) {
  const std::size_t head = sizeof(SealedHeadBytes);
  if (type != RecordType::sealed_page_group) return head;
  if (front.size() < head + sizeof(PageGroupHeadBytes)) return head + sizeof(PageGroupHeadBytes);
  return head + page_group_keys_bytes(load<le16>(front.data() + head));
}

Result<SealedFront> decode_sealed_front(ByteSpan front) {
  BodyReader reader(front);
  SealedHeadBytes head;
  if (!reader.read(head)) return malformed_seal("shorter than its head");
  if (head.reserved16.get() != 0 || head.reserved32.get() != 0) {
    return malformed_seal("reserved bytes are not 0");
  }
  return SealedFront{head.key_id, head.dead_pages.get()};
}

Result<PageGroup> decode_sealed_group_keys(ByteSpan front) {
  VMSHADOW_ASSIGN(const SealedFront sealed, decode_sealed_front(front));
  VMSHADOW_ASSIGN(PageGroup group, decode_page_group_keys(front.subspan(sizeof(SealedHeadBytes))));
  if (sealed.dead_pages >> group.page_count != 0) {
    return malformed_seal("more dead pages than it has");
  }
  group.dead_pages = sealed.dead_pages;
  return group;
}

Result<SealedBody> decode_sealed_body(RecordType type, ByteSpan body) {
  VMSHADOW_ASSERT(is_sealed(type));
  VMSHADOW_ASSIGN(const SealedFront front, decode_sealed_front(body));
  SealedBody sealed;
  sealed.key_id = front.key_id;
  sealed.dead_pages = front.dead_pages;
  BodyReader reader(body.subspan(sizeof(SealedHeadBytes)));
  const std::size_t front_bytes = sealed_front_bytes(type, body) - sizeof(SealedHeadBytes);
  if (!reader.read_bytes(front_bytes, sealed.plain_front) ||
      !reader.read_bytes(kSealedNonceBytes, sealed.nonce) ||
      reader.rest().size() < kSealedTagBytes) {
    return malformed_seal("it ends before its tag");
  }
  sealed.ciphertext = reader.rest().first(reader.rest().size() - kSealedTagBytes);
  sealed.tag = reader.rest().last(kSealedTagBytes);
  return sealed;
}

void set_dead_pages(std::vector<std::byte>& record, std::uint16_t dead_pages) {
  const auto prefix = decode_prefix(record);
  VMSHADOW_ASSERT(prefix && prefix->head.type == RecordType::sealed_page_group);
  const le16 bytes(dead_pages);
  std::memcpy(record.data() + kRecordPrefixBytes + offsetof(SealedHeadBytes, dead_pages), &bytes,
              sizeof bytes);
  finish_record(record, 0, prefix->head);
}

}  // namespace vmshadow::format
