// What a witness keeps in the guest's RAM and prints on its console: shared, as plain C types, by
// the bare-metal guest (32 bits, no library), the Linux witness and the judge on the host.
//
// A witness owns a control page (page aligned, found by its magic), an arena of pages it rewrites,
// and a table with the sequence each arena page must carry. A page's own checksum finds torn or
// mixed pages; only the table finds a *stale* one, which is whole but old.
//
// It prints lines of constant length, byte by byte, and records in the control page how far it is:
//
//   compose text for `line`, sent = 0 ─► (one byte out, sent + 1) × 96 ─► line + 1 ─► …
//
// `progress` holds `sent` together with the low bits of the line it belongs to, so that advancing
// `line` is one store and leaves no moment at which the two contradict each other. A cut between
// a byte's `out` and the store behind it is the only doubt left: one byte, never more.
#pragma once

#include <stdint.h>

namespace vmshadow::witness {

inline constexpr char kMagic[17] = "VMSHADOW-WITNESS";
inline constexpr uint32_t kVersion = 2;
inline constexpr uint32_t kKindBare = 1;
inline constexpr uint32_t kKindLinux = 2;
inline constexpr uint32_t kPage = 4096;
inline constexpr uint64_t kNoPage = ~uint64_t{0};

/// "W <nonce 32> <seq 16> <writes 16> <bad 8> #<seq 16>\n", numbers in lower-case hex.
inline constexpr uint32_t kLineBytes = 96;
inline constexpr uint32_t kNonceAt = 2;
inline constexpr uint32_t kSequenceAt = 35;
inline constexpr uint32_t kWritesAt = 52;
inline constexpr uint32_t kBadAt = 69;
inline constexpr uint32_t kTailAt = 78;  ///< the '#'

inline constexpr uint32_t kDisksMax = 4;
/// See disk_records.h.
struct DiskCounts {
  uint64_t slots;  ///< 0: there is no such disk
  uint64_t issued;
  uint64_t acknowledged;
};

/// Little-endian; everything the bare guest changes in flight is a single aligned 32-bit store.
struct ControlPage {
  char magic[16];
  uint32_t version;
  uint32_t kind;
  uint8_t nonce[16];       ///< drawn at start, exists in RAM alone: proves that this run goes on
  uint64_t arena_address;  ///< guest-physical (bare) or virtual (Linux)
  uint64_t arena_pages;
  uint64_t table_address;  ///< uint32_t per arena page: low half of the sequence it must carry
  uint32_t line_bytes;
  uint32_t reserved;
  uint64_t constants_check;  ///< constants_check() of the bytes above
  uint64_t line;             ///< report being printed, or next
  uint32_t progress;         ///< pack_progress(); belongs to `line` only if the tag says so
  uint32_t bad;              ///< bad pages seen so far
  uint64_t writes;           ///< pages written so far, the newest page's sequence
  uint64_t verified;         ///< page checks done so far
  uint64_t first_bad_page;   ///< arena index, or kNoPage
  uint64_t started;          ///< 1 once the arena is initialised and lines are printed
  char text[kLineBytes];     ///< the line `progress` belongs to
  struct DiskCounts disks[kDisksMax];
  uint8_t unused[kPage - 320];
};
static_assert(sizeof(ControlPage) == kPage, "one page");
static_assert(__builtin_offsetof(ControlPage, constants_check) == 72, "constants first");
static_assert(__builtin_offsetof(ControlPage, line) == 80, "8-aligned, whatever the ABI");
static_assert(__builtin_offsetof(ControlPage, text) == 128, "aligned text");

constexpr uint32_t line_tag(uint64_t line) { return static_cast<uint32_t>(line) & 0xffffffU; }
constexpr uint32_t pack_progress(uint64_t line, uint32_t sent) {
  return line_tag(line) << 8 | sent;
}
constexpr uint32_t progress_tag(uint32_t progress) { return progress >> 8; }
constexpr uint32_t progress_sent(uint32_t progress) { return progress & 0xffU; }

/// FNV-1a, 64 bits, over the control page's constant part.
inline uint64_t constants_check(const ControlPage& page) {
  uint64_t h = 0xcbf29ce484222325U;
  const auto* bytes = reinterpret_cast<const uint8_t*>(&page);
  for (uint32_t i = 0; i < __builtin_offsetof(ControlPage, constants_check); ++i) {
    h = (h ^ bytes[i]) * 0x100000001b3U;
  }
  return h;
}

/// The frame of an arena page; `check` is the witness's own affair (see each guest).
struct ArenaPage {
  uint32_t nonce;     ///< the run's first nonce word: pages of another run are bad
  uint32_t number;    ///< index in the arena
  uint64_t sequence;  ///< the write that made it
  uint64_t check;
  uint8_t content[kPage - 32];
  uint64_t sequence_again;  ///< at the far end: a page of two halves is bad
};
static_assert(sizeof(ArenaPage) == kPage, "one page");

inline char* put_hex(char* at, uint64_t value, int digits) {
  for (int i = digits - 1; i >= 0; --i, value >>= 4) at[i] = "0123456789abcdef"[value & 15U];
  return at + digits;
}

/// Writes the kLineBytes bytes of one report.
inline void compose_line(char* at, const uint8_t* nonce, uint64_t line, uint64_t writes,
                         uint32_t bad) {
  *at++ = 'W';
  *at++ = ' ';
  for (int i = 0; i < 16; ++i) at = put_hex(at, nonce[i], 2);
  *at++ = ' ';
  at = put_hex(at, line, 16);
  *at++ = ' ';
  at = put_hex(at, writes, 16);
  *at++ = ' ';
  at = put_hex(at, bad, 8);
  *at++ = ' ';
  *at++ = '#';
  at = put_hex(at, line, 16);
  *at = '\n';
}

/// Prints one report and advances `line`. `put` sends one byte and returns when it has left the
/// machine; the volatile stores keep the order described above.
template <class PutByte>
inline void print_report(ControlPage& page, PutByte put) {
  volatile uint32_t& progress = page.progress;
  compose_line(page.text, page.nonce, page.line, page.writes, page.bad);
  asm volatile("" ::: "memory");
  progress = pack_progress(page.line, 0);
  for (uint32_t sent = 0; sent < kLineBytes;) {
    put(page.text[sent]);
    progress = pack_progress(page.line, ++sent);
  }
  asm volatile("" ::: "memory");
  auto* line = reinterpret_cast<volatile uint32_t*>(&page.line);
  if (line[0] == 0xffffffffU) line[1] = line[1] + 1;
  line[0] = line[0] + 1;
}

}  // namespace vmshadow::witness
