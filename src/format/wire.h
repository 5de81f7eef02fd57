// Bodies of the records that only travel: hello, welcome, ack, refusal (ping and pong have none).
//
//   sidecar ── hello ──────────────────────────────► store
//           ◄─ welcome (generation, next epoch)  or  refusal, then close
//           ── machine? groups … device_state epoch_end ─►        (any number of epochs in flight)
//           ◄─ ack (epoch durable)  or  refusal, then close
//           ── ping ─► ◄─ pong                                     (when idle)
//
// Version policy: hello offers a range, welcome picks the highest both know. A record of another
// record version ends the connection with an error that names both versions: the 64-byte prefix is
// the same for ever, so it can always be told.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include <vmshadow/clock.h>
#include <vmshadow/result.h>
#include <vmshadow/types.h>

#include "format/record.h"

namespace vmshadow::format {

inline constexpr std::uint16_t kWireVersionMin = 1;
inline constexpr std::uint16_t kWireVersionMax = 1;
inline constexpr std::size_t kRefusalTextBytesMax = 1024;
/// The longest body of any record in this file.
inline constexpr std::size_t kWireBodyBytesMax = 2048;

struct Hello {
  std::uint16_t version_min = kWireVersionMin;
  std::uint16_t version_max = kWireVersionMax;
  std::uint32_t features{};  ///< none defined yet; unknown bits are ignored
  std::uint32_t page_bytes = kPageBytes;
  std::string vm_name;
  bool operator==(const Hello&) const = default;
};
struct Welcome {
  std::uint16_t version{};
  std::uint32_t features{};
  Generation generation;
  Epoch next_epoch;
  bool operator==(const Welcome&) const = default;
};
/// The epoch is the one in the record's prefix.
struct Ack {
  WallTime committed_wall;
  std::chrono::microseconds sync{};
  bool operator==(const Ack&) const = default;
};
struct Refusal {
  Errc code{};
  std::string text;  ///< one sentence for the operator; cut at kRefusalTextBytesMax
  bool operator==(const Refusal&) const = default;
};

void append_body(std::vector<std::byte>& out, const Hello& hello);
void append_body(std::vector<std::byte>& out, const Welcome& welcome);
void append_body(std::vector<std::byte>& out, const Ack& ack);
void append_body(std::vector<std::byte>& out, const Refusal& refusal);

/// Checks lengths, the version range and the VM's name.
[[nodiscard]] Result<Hello> decode_hello(ByteSpan body);
[[nodiscard]] Result<Welcome> decode_welcome(ByteSpan body);
[[nodiscard]] Result<Ack> decode_ack(ByteSpan body);
/// An unknown code reads as Errc::io; control characters in the text are replaced by '?'.
[[nodiscard]] Result<Refusal> decode_refusal(ByteSpan body);

/// The highest version both sides know; Errc::version if there is none.
[[nodiscard]] Result<std::uint16_t> choose_version(const Hello& hello);

}  // namespace vmshadow::format
