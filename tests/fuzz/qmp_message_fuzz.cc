// The splitter of a monitor's stream. The input's first two bytes choose the limit and the
// chunking, the rest is the stream: fed whole, byte by byte and in chunks of varying size, it gives
// the same messages and the same verdict, keeps no more than its limit, and stays broken once it
// is.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "qmp/message_stream.h"

namespace {

using namespace vmshadow;
using qmp::MessageStream;

void require(bool holds) {
  if (!holds) std::abort();
}

struct Outcome {
  std::vector<std::string> messages;
  std::optional<std::size_t> unfinished;  ///< nullopt: refused
};

void check_refusal(MessageStream& stream, const Error& refused) {
  require(refused.code == Errc::protocol && !refused.message.empty());
  require(stream.unfinished_bytes() == 0);
  const std::byte more[] = {std::byte{'{'}, std::byte{'}'}};
  const auto again = stream.feed(more);
  require(!again && again.error().message == refused.message);
  require(!stream.next());
}

/// Feeds all of `bytes`; `chunk(i)` is the size of the i-th piece.
template <class Chunk>
Outcome run(ByteSpan bytes, std::size_t limit, Chunk chunk) {
  MessageStream stream(limit);
  Outcome outcome;
  std::size_t fed_bytes = 0;
  std::size_t shown_bytes = 0;
  for (std::size_t i = 0; fed_bytes < bytes.size(); ++i) {
    const std::size_t size = std::min<std::size_t>(chunk(i), bytes.size() - fed_bytes);
    const auto fed = stream.feed(bytes.subspan(fed_bytes, size));
    fed_bytes += size;
    while (const auto message = stream.next()) {
      require(message->is_object());
      outcome.messages.push_back(message->dump());
      shown_bytes += 2;  // "{}" at least
    }
    require(shown_bytes <= fed_bytes);
    require(stream.unfinished_bytes() <= std::min(limit, fed_bytes));
    if (!fed) {
      check_refusal(stream, fed.error());
      return outcome;
    }
  }
  outcome.unfinished = stream.unfinished_bytes();
  return outcome;
}

void require_same(const Outcome& a, const Outcome& b) {
  require(a.messages == b.messages && a.unfinished == b.unfinished);
}

/// What was read must read again as itself.
void check_round_trip(const std::vector<std::string>& messages) {
  std::string text;
  for (const auto& message : messages) text += message + "\r\n";
  const auto bytes = std::as_bytes(std::span(text));
  const Outcome again = run(bytes, text.size(), [&](std::size_t) { return bytes.size(); });
  require(again.unfinished == 0 && again.messages == messages);
}

void check_excerpt(const std::string& text) {
  const std::string shown = qmp::excerpt(text);
  require(shown.size() <= 48 + 3);
  require(std::all_of(shown.begin(), shown.end(), [](char c) { return c >= ' ' && c <= '~'; }));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 2) return 0;
  // 2 to 8192 bytes: small inputs reach the small ones, deep nesting needs the large ones.
  const std::size_t limit = std::size_t{2} << (data[0] % 13);
  std::uint32_t state = data[1];
  const ByteSpan bytes = std::as_bytes(std::span(data, size)).subspan(2);
  const Outcome whole = run(bytes, limit, [&](std::size_t) { return bytes.size(); });
  require_same(whole, run(bytes, limit, [](std::size_t) { return 1; }));
  require_same(whole, run(bytes, limit, [&](std::size_t) {
                 state = state * 1664525 + 1013904223;
                 return 1 + (state >> 24) % 64;
               }));
  check_round_trip(whole.messages);
  check_excerpt(std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
  return 0;
}
