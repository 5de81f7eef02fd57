// What a witness guest says, on its console and in its memory, and the judgement whether a restored
// guest goes on exactly where a committed epoch left it.
//
// Committed: the control page inside the epoch's RAM image says which line was being printed
// (`line`) and how many of its bytes had left (`sent`). Restored: the console continues with the
// rest of that line, or with all of it. One byte is in doubt: the cut may lie between a byte's
// departure and the store that counts it, so byte number `sent` may already be out.
//
//   image says                        the restored console must begin with
//   line L not begun                  L
//   line L, sent bytes, n = length    L[sent..n) or L[sent+1..n), then L+1
//   line L, sent = n                  L+1   (the line is out; `line` not yet advanced)
//
// seq_committed is the image's L (L+1 in the last row). seq_restored is the first whole line's
// number, less one if a part of a line came before it, or if the image has all but one byte of L
// out and the console starts with L+1 (the byte in doubt was L's last). They must be equal.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <vmshadow/clock.h>
#include <vmshadow/result.h>
#include <vmshadow/shadow_reader.h>
#include <vmshadow/types.h>

#include "support/console.h"

namespace vmshadow::test {

using WitnessNonce = std::array<std::uint8_t, 16>;
[[nodiscard]] std::string nonce_text(const WitnessNonce& nonce);

/// One line of a witness.
struct WitnessReport {
  WitnessNonce nonce{};
  std::uint64_t sequence{};
  std::uint64_t writes{};     ///< pages written so far
  std::uint32_t bad_pages{};  ///< bad pages seen so far
  MonotonicTime stamp;        ///< the host's
};
/// Errc::invalid_argument says what is wrong with the line.
[[nodiscard]] Result<WitnessReport> parse_witness_report(std::string_view line,
                                                         MonotonicTime stamp = {});
/// Every line, the first of which may be a part of one and is then left out.
[[nodiscard]] Result<std::vector<WitnessReport>> parse_witness_reports(
    std::span<const ConsoleLine> lines);

/// The control page, decoded; `line` and `sent` are normalised: sent is less than a line's length.
struct WitnessControl {
  enum class Kind { bare, linux_kernel };
  Kind kind{};
  WitnessNonce nonce{};
  std::uint64_t arena_address{};  ///< guest-physical (bare) or virtual (Linux)
  std::uint64_t arena_pages{};
  std::uint64_t line{};  ///< seq_committed
  bool line_begun{};     ///< `sent` and `text` are this line's
  std::uint32_t sent{};
  std::string text;  ///< the line with its '\n', if begun
  std::uint64_t writes{};
  std::uint64_t verified{};
  std::uint32_t bad_pages{};
  std::optional<std::uint64_t> first_bad_page;
  PageNumber page;  ///< where it was found
  struct Disk {
    std::uint64_t slots{}, issued{}, acknowledged{};
  };
  std::vector<Disk> disks;  ///< those it writes to
};
/// Errc::not_found: no control page. Errc::version, Errc::corrupt: it cannot be one of ours.
[[nodiscard]] Result<WitnessControl> decode_witness_control(ByteSpan page);
/// Searches block "pc.ram". Errc::not_found: no witness ran, or it had not begun its reports;
/// Errc::corrupt: a damaged page, or more than one.
[[nodiscard]] Result<WitnessControl> find_witness_control(const EpochImage& image);

struct WitnessVerdict {
  bool same_run{};  ///< one nonce in the image and on both consoles
  std::uint32_t bad_pages{};
  std::uint64_t seq_committed{};
  std::uint64_t seq_restored{};
  bool bytes_continue{};  ///< the restored console's first bytes are the ones due
  std::string bytes;      ///< what was due and what came, where they are not
  bool in_sequence{};     ///< no line missing or doubled, on either console
  /// Lines the primary printed from seq_committed on: seen outside, then rolled back.
  std::uint64_t lines_rolled_back{};
  /// From the primary's last line to the first whole line of the restored guest.
  std::chrono::nanoseconds silence{};
  [[nodiscard]] bool continues_exactly() const {
    return same_run && bad_pages == 0 && seq_restored == seq_committed && bytes_continue &&
           in_sequence;
  }
  [[nodiscard]] std::string text() const;
};

/// Errc::invalid_argument: a line cannot be read, or the restored console has no whole line yet.
[[nodiscard]] Result<WitnessVerdict> judge_restore(std::span<const ConsoleLine> primary,
                                                   const WitnessControl& committed,
                                                   std::span<const ConsoleLine> restored);

/// One console's reports, looked at by themselves.
struct WitnessRun {
  std::size_t reports{};
  bool same_run = true;
  bool in_sequence = true;
  std::uint32_t bad_pages{};
  std::chrono::nanoseconds longest_gap{};  ///< between two lines
  double writes_per_s{};                   ///< by the host's stamps; 0 for fewer than two reports
};
[[nodiscard]] WitnessRun examine_run(std::span<const WitnessReport> reports);

}  // namespace vmshadow::test
