// A client that says anything at all: a conversation with two small disks.
#include <algorithm>
#include <memory>

#include "base/assert.h"
#include "nbd/negotiation.h"
#include "nbd/transmission.h"
#include "support/memory_device.h"
#include "support/nbd_script.h"

namespace {

using namespace vmshadow;

/// Answers to one conversation: a short one may ask for much, but not without end.
constexpr std::size_t kAnswerBytesMax = std::size_t{64} << 20;

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  constexpr std::uint64_t kBytes = 16 << 10;
  const std::vector<nbd::Export> exports{
      {"a", "writable", std::make_shared<test::MemoryDevice>(kBytes)},
      {"b", "", std::make_shared<test::MemoryDevice>(kBytes, true)}};
  test::ScriptedStream stream(std::as_bytes(std::span(data, size)));
  const auto agreement = nbd::negotiate(stream, exports);
  if (!agreement) {
    VMSHADOW_ASSERT(!agreement.error().message.empty());
    return 0;
  }
  if (!*agreement) return 0;
  const auto done = nbd::transmit(stream, **agreement);
  VMSHADOW_ASSERT(done || !done.error().message.empty());
  VMSHADOW_ASSERT(stream.answers().size() <= kAnswerBytesMax);
  // Nothing may have reached the disk that cannot be written.
  const auto untouched = exports[1].device->extents(0, kBytes);
  VMSHADOW_ASSERT(untouched && std::all_of(untouched->begin(), untouched->end(),
                                           [](const BlockExtent& extent) { return extent.hole; }));
  return 0;
}
