// Cuts a stream of bytes into JSON objects: what a monitor sends, in any chunking.
//
// A message is one object; between messages any whitespace is accepted (QEMU ends each with CR LF,
// and spreads one over several lines in pretty mode). The end of an object is found by counting
// brackets outside of strings, so that nothing is parsed before it is complete:
//
//   between ──'{'──► inside ──'"'──► string ──'\'──► escape
//      ▲                │  ▲            │  ▲            │
//      └── depth 0 ─────┘  └────'"'─────┘  └────────────┘
//
// Bounded: at most message_bytes_max of an unfinished message and nesting_depth_max levels are
// kept. The first error is final: a stream that lost its place has no next message.
#pragma once

#include <nlohmann/json.hpp>

#include <cstddef>
#include <deque>
#include <optional>
#include <string>

#include <vmshadow/result.h>
#include <vmshadow/types.h>

namespace vmshadow::qmp {

class MessageStream {
 public:
  /// QEMU's own parser gives up at 1024 levels; the deepest answer (a chain of backing files) has
  /// two levels a file.
  static constexpr std::size_t kNestingDepthMax = 1024;

  explicit MessageStream(std::size_t message_bytes_max) : message_bytes_max_(message_bytes_max) {}

  /// Takes all of `bytes`. Errc::protocol if they are not such a stream; the messages before the
  /// fault can still be taken.
  [[nodiscard]] Status feed(ByteSpan bytes);
  /// The oldest complete message not yet taken.
  [[nodiscard]] std::optional<nlohmann::json> next();
  /// Bytes of the message that has begun and not ended.
  [[nodiscard]] std::size_t unfinished_bytes() const { return text_.size(); }

 private:
  enum class Place { between, inside, string, escape };

  /// Moves by one byte; true if it ended a message.
  [[nodiscard]] Result<bool> step(unsigned char byte);
  [[nodiscard]] Status append(ByteSpan part);
  [[nodiscard]] Status finish_message();

  std::size_t message_bytes_max_;
  Place place_ = Place::between;
  std::size_t depth_ = 0;
  std::string text_;
  std::deque<nlohmann::json> ready_;
  std::optional<Error> broken_;
};

/// The start of `text` as it may be shown in a message: at most 48 printable ASCII characters,
/// others as '.'.
[[nodiscard]] std::string excerpt(std::string_view text);
/// All of `text`, each control character as '.': a peer's words must not steer a terminal.
[[nodiscard]] std::string printable(std::string text);

}  // namespace vmshadow::qmp
