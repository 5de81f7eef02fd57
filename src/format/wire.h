// Bodies of the records that only travel: hello, welcome, ack, refusal (ping and pong have none),
// and the exchange that lets a session go on where the last one ended.
//
//   sidecar ── hello ──────────────────────────────► store
//           ◄─ welcome (generation, next epoch)  or  refusal, then close
//           ── base_query ─►  ◄─ machine, base_hashes …, base_end   (from version 2, at most once)
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

#include "base/hash.h"
#include "format/epoch_records.h"
#include "format/record.h"

namespace vmshadow::format {

inline constexpr std::uint16_t kWireVersionMin = 1;
inline constexpr std::uint16_t kWireVersionMax = 2;
/// The first that has base_query, base_hashes and base_end.
inline constexpr std::uint16_t kWireVersionWithBase = 2;
inline constexpr std::size_t kRefusalTextBytesMax = 1024;
/// The longest body of any record in this file but base_hashes.
inline constexpr std::size_t kWireBodyBytesMax = 2048;
/// Pages in a base_hashes record.
inline constexpr std::size_t kBaseHashesMax = 4096;

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

/// Asks for the hashes of the pages of the newest committed epoch, made with this secret.
struct BaseQuery {
  std::array<std::byte, PageHasher::kSecretBytes> secret{};
  bool operator==(const BaseQuery&) const = default;
};
/// Data pages of that epoch and their hashes. A page that is in none of these records is zero.
struct BaseHashes {
  struct Page {
    PageKey key;
    PageHash hash;
    bool operator==(const Page&) const = default;
  };
  std::vector<Page> pages;  ///< 1 to kBaseHashesMax
  bool operator==(const BaseHashes&) const = default;
};
struct BaseEnd {
  std::uint64_t data_pages{};  ///< in all base_hashes records
  std::string why_not;  ///< why there is no base (a sentence, cut at kRefusalTextBytesMax); empty:
                        ///< all were sent
  bool operator==(const BaseEnd&) const = default;
};

void append_body(std::vector<std::byte>& out, const Hello& hello);
void append_body(std::vector<std::byte>& out, const Welcome& welcome);
void append_body(std::vector<std::byte>& out, const Ack& ack);
void append_body(std::vector<std::byte>& out, const Refusal& refusal);
void append_body(std::vector<std::byte>& out, const BaseQuery& query);
void append_body(std::vector<std::byte>& out, const BaseHashes& hashes);
void append_body(std::vector<std::byte>& out, const BaseEnd& end);

/// Checks lengths, the version range and the VM's name.
[[nodiscard]] Result<Hello> decode_hello(ByteSpan body);
[[nodiscard]] Result<Welcome> decode_welcome(ByteSpan body);
[[nodiscard]] Result<Ack> decode_ack(ByteSpan body);
/// An unknown code reads as Errc::io; control characters in the text are replaced by '?'.
[[nodiscard]] Result<Refusal> decode_refusal(ByteSpan body);
[[nodiscard]] Result<BaseQuery> decode_base_query(ByteSpan body);
[[nodiscard]] Result<BaseHashes> decode_base_hashes(ByteSpan body);
/// Control characters in the text are replaced by '?'.
[[nodiscard]] Result<BaseEnd> decode_base_end(ByteSpan body);

/// The highest version both sides know; Errc::version if there is none.
[[nodiscard]] Result<std::uint16_t> choose_version(const Hello& hello);

}  // namespace vmshadow::format
