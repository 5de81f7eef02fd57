// A sealed record's body, whatever its bytes: taken apart without reading beyond it, and never
// opened, since no fuzzer finds a tag. The same bytes as a plain body, sealed, open to themselves.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/assert.h"
#include "crypt/sealed_record.h"
#include "format/epoch_records.h"
#include "format/sealed_record.h"

namespace {

using namespace vmshadow;
using format::RecordType;

const crypt::VmKeys& keys() {
  static const crypt::VmKeys made = [] {
    const std::vector<std::byte> bytes(crypt::kKeyBytes, std::byte{1});
    const auto secret = crypt::SecretKey::copy_of(ByteSpan(bytes).first<crypt::kKeyBytes>());
    crypt::VmKeys all;
    all.push_back(*crypt::VmKey::derive(*secret, vm_id("web1")));
    return all;
  }();
  return made;
}

format::RecordHead head_of(RecordType type) {
  return {type, 3, vm_id("web1"), Generation{1}, Epoch{2}};
}

void take_apart(RecordType type, ByteSpan body) {
  const std::size_t front = format::sealed_front_bytes(type, body);
  VMSHADOW_ASSERT(front >= sizeof(format::SealedHeadBytes));
  const auto group = format::decode_sealed_group_keys(body);
  if (group) VMSHADOW_ASSERT(group->dead_pages >> group->page_count == 0);
  if (const auto sealed = format::decode_sealed_body(type, body)) {
    VMSHADOW_ASSERT(sizeof(format::SealedHeadBytes) + sealed->plain_front.size() +
                        sealed->nonce.size() + sealed->ciphertext.size() + sealed->tag.size() ==
                    body.size());
    VMSHADOW_ASSERT(format::plain_body_bytes(body.size()) ==
                    sealed->plain_front.size() + sealed->ciphertext.size());
  }
  std::vector<std::byte> record;
  format::append_record(record, head_of(type), body);
  std::vector<std::byte> plain;
  const auto prefix = format::decode_prefix(record);
  VMSHADOW_ASSERT(!crypt::open_record(keys(), *prefix, body, plain));
}

void seal_and_open(RecordType type, ByteSpan body) {
  if (type == RecordType::page_group && !format::decode_page_group(body)) return;
  std::vector<std::byte> record;
  crypt::seal_record(keys().front(), {}, head_of(type), body, record);
  const auto prefix = format::decode_prefix(record);
  const ByteSpan sealed = ByteSpan(record).subspan(format::kRecordPrefixBytes);
  VMSHADOW_ASSERT(prefix && format::check_body(*prefix, sealed));
  std::vector<std::byte> plain;
  VMSHADOW_ASSERT(crypt::open_record(keys(), *prefix, sealed, plain));
  VMSHADOW_ASSERT(std::equal(plain.begin(), plain.end(), body.begin(), body.end()));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size > format::kSealablePlainBytesMax) return 0;
  const ByteSpan body = std::as_bytes(std::span(data, size));
  for (const RecordType type :
       {RecordType::machine, RecordType::page_group, RecordType::device_state}) {
    take_apart(format::sealed_type(type), body);
    seal_and_open(type, body);
  }
  return 0;
}
