#include "capture/run_state_at_cut.h"

#include <algorithm>
#include <array>
#include <string_view>

#include "base/endian.h"
#include "base/migration_format.h"

namespace vmshadow::capture {
namespace {

constexpr std::string_view kName = "globalstate";
constexpr std::size_t kRunStateBytes = 100;

}  // namespace

// FULL: 04, be32 section, u8 length, name, be32 instance, be32 version; then be32 length with the
// terminator, and the text in a field of 100 bytes.
std::optional<std::string> run_state_at_cut(ByteSpan device_state) {
  constexpr std::size_t kAhead = 1 + sizeof(be32) + 1;
  constexpr std::size_t kBehind = 2 * sizeof(be32);
  const ByteSpan name = std::as_bytes(std::span(kName));
  // From the end: what a guest has written into a device's memory comes before.
  for (auto end = device_state.end();;) {
    const auto found = std::find_end(device_state.begin(), end, name.begin(), name.end());
    if (found == end) return std::nullopt;
    end = found;
    const auto at = static_cast<std::size_t>(found - device_state.begin());
    const ByteSpan rest = device_state.subspan(at + name.size());
    if (at < kAhead || rest.size() < kBehind + sizeof(be32) + kRunStateBytes) continue;
    if (static_cast<std::uint8_t>(device_state[at - kAhead]) != migration_format::kSectionFull ||
        static_cast<std::size_t>(device_state[at - 1]) != name.size()) {
      continue;
    }
    const auto length = load<be32>(rest.data() + kBehind);
    if (length == 0 || length > kRunStateBytes) continue;
    const auto* text = reinterpret_cast<const char*>(rest.data() + kBehind + sizeof(be32));
    return std::string(text, std::find(text, text + length, '\0'));
  }
}

}  // namespace vmshadow::capture
