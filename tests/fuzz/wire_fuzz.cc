// The bodies that only travel. The first byte picks the record.
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "base/assert.h"
#include "format/wire.h"

namespace {

using namespace vmshadow;
using namespace vmshadow::format;

/// What decodes must encode to something that decodes to the same.
template <class T, class Decode>
void round_trip(const Result<T>& decoded, const Decode& decode) {
  if (!decoded) {
    VMSHADOW_ASSERT(!decoded.error().message.empty());
    return;
  }
  std::vector<std::byte> encoded;
  append_body(encoded, *decoded);
  VMSHADOW_ASSERT(encoded.size() <= kRecordBodyBytesMax);
  const auto again = decode(encoded);
  VMSHADOW_ASSERT(again && *again == *decoded);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const ByteSpan body = std::as_bytes(std::span(data + 1, size - 1));
  switch (data[0] % 7) {
    case 0: {
      const auto hello = decode_hello(body);
      if (hello) {
        VMSHADOW_ASSERT(is_valid_vm_name(hello->vm_name));
        const auto version = choose_version(*hello);
        VMSHADOW_ASSERT(!version ||
                        (*version >= hello->version_min && *version <= hello->version_max));
      }
      round_trip(hello, decode_hello);
      break;
    }
    case 1:
      round_trip(decode_welcome(body), decode_welcome);
      break;
    case 2:
      round_trip(decode_ack(body), decode_ack);
      break;
    case 3: {
      const auto refusal = decode_refusal(body);
      if (refusal) {
        VMSHADOW_ASSERT(std::none_of(refusal->text.begin(), refusal->text.end(),
                                     [](char c) { return static_cast<unsigned char>(c) < 0x20; }));
      }
      round_trip(refusal, decode_refusal);
      break;
    }
    case 4:
      round_trip(decode_base_query(body), decode_base_query);
      break;
    case 5:
      round_trip(decode_base_hashes(body), decode_base_hashes);
      break;
    case 6:
      round_trip(decode_base_end(body), decode_base_end);
      break;
  }
  return 0;
}
