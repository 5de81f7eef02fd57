// The bare guest's witness: writes a set number of arena pages per timer tick in a set pattern,
// re-checks a share of the arena per tick, and reports on COM1 (see witness_layout.h).
//
// Parameters come from fw_cfg as words "key=value" parted by spaces, commas or semicolons:
//   qemu … -fw_cfg 'name=opt/vmshadow/witness,string=pages=50 tick_us=10000 pattern=uniform'
//
//   arena_mib=16        size of the arena
//   tick_us=10000       time between ticks; 0: no pause at all
//   pages=50            pages written per tick; "all": the whole arena; 0: nothing
//   pattern=uniform     sequential | stride | uniform | hot
//   stride=17           step of "stride", in pages
//   hot_percent=90      "hot": share of the writes that goes to the hot set …
//   hot_set_percent=10  … and its share of the arena
//   rewrite_same_percent=0  writes that dirty a page without changing it
//   fill_words=0        32-bit words of noise put into a written page (0 to 1012)
//   verify=16           arena pages checked per tick
//   report=1            ticks between reports
//   panic_after=0       reports after which it says so to a pvpanic device, as a crashed kernel; 0:
//   never
//
// Every instruction may cost a microsecond here (a KVM that emulates the guest), so a page's check
// covers its frame (nonce, number, sequence at both ends), not its content.
// Memory: control page 1 MiB; table from 1 MiB + 64 KiB; then the arena, 64 KiB aligned.
#include "guest/bare/hardware.h"
#include "guest/witness_layout.h"

using namespace vmshadow::witness;

namespace {

enum class Pattern : uint32_t { sequential, stride, uniform, hot };

struct Parameters {
  uint32_t arena_mib;
  uint32_t tick_us;
  uint32_t pages;
  Pattern pattern;
  uint32_t stride;
  uint32_t hot_percent;
  uint32_t hot_set_percent;
  uint32_t rewrite_same_percent;
  uint32_t fill_words;
  uint32_t verify;
  uint32_t report;
  uint32_t panic_after;
};
constexpr Parameters kDefaults = {
    .arena_mib = 16,
    .tick_us = 10000,
    .pages = 50,
    .pattern = Pattern::uniform,
    .stride = 17,
    .hot_percent = 90,
    .hot_set_percent = 10,
    .rewrite_same_percent = 0,
    .fill_words = 0,
    .verify = 16,
    .report = 1,
    .panic_after = 0,
};
constexpr uint16_t kPvpanicPort = 0x505;
constexpr uint8_t kPvpanicPanicked = 1;
constexpr uint32_t kAll = 0xffffffff;
constexpr uint32_t kFillWordsMax = (kPage - 48) / 4;
constexpr uint32_t kNoiseWords = 8192;
constexpr uint32_t kTickMaxUs = 3'000'000;
constexpr uint32_t kTimerCountMax = 59659;  // 50 ms
constexpr uint32_t kControlAddress = 0x100000;
constexpr uint32_t kTableAddress = 0x110000;

auto& control = *reinterpret_cast<ControlPage*>(kControlAddress);
auto* const table = reinterpret_cast<uint32_t*>(kTableAddress);

Parameters parameters;  // filled in by read_parameters: nothing loads initialised data
ArenaPage* arena;
uint32_t arena_pages;
uint32_t random_state;
uint32_t next_page;  // of the sequential and stride patterns
uint32_t next_verify;
uint32_t sequence;  // of the newest page; control.writes follows it
uint32_t hot_pages;
uint32_t noise[kNoiseWords];  // what filled pages are copied from

[[noreturn]] void give_up(const char* message, const char* detail = "") {
  bare::put_text("E ");
  bare::put_text(message);
  bare::put_text(detail);
  bare::put_text("\n");
  for (;;) asm volatile("cli; hlt");
}

// xorshift32: three shifts, no multiplication by 64 bits.
uint32_t draw() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 17;
  random_state ^= random_state << 5;
  return random_state;
}
uint32_t draw_below(uint32_t limit) {
  return static_cast<uint32_t>(uint64_t{draw()} * limit >> 32);
}

// ---- parameters

// The value's text if `word` is `key=value`, else null.
const char* value_of(const char* word, const char* key) {
  while (*key != 0 && *word == *key) ++word, ++key;
  return *key == 0 && *word == '=' ? word + 1 : nullptr;
}
bool is(const char* text, const char* other) {
  while (*text != 0 && *text == *other) ++text, ++other;
  return *text == *other;
}
uint32_t number(const char* text) {
  if (*text == 0) give_up("a parameter has no value");
  uint32_t value = 0;
  for (const char* at = text; *at != 0; ++at) {
    if (*at < '0' || *at > '9' || at - text > 8) give_up("not a number: ", text);
    value = value * 10 + static_cast<uint32_t>(*at - '0');
  }
  return value;
}
Pattern pattern_named(const char* text) {
  if (is(text, "sequential")) return Pattern::sequential;
  if (is(text, "stride")) return Pattern::stride;
  if (is(text, "uniform")) return Pattern::uniform;
  if (is(text, "hot")) return Pattern::hot;
  give_up("unknown pattern: ", text);
}
uint32_t percent(const char* text) {
  const uint32_t value = number(text);
  if (value > 100) give_up("more than 100 percent: ", text);
  return value;
}

void take_parameter(const char* word) {
  Parameters& p = parameters;
  if (const char* v = value_of(word, "arena_mib"))
    p.arena_mib = number(v);
  else if (const char* v = value_of(word, "tick_us"))
    p.tick_us = number(v);
  else if (const char* v = value_of(word, "pages"))
    p.pages = is(v, "all") ? kAll : number(v);
  else if (const char* v = value_of(word, "pattern"))
    p.pattern = pattern_named(v);
  else if (const char* v = value_of(word, "stride"))
    p.stride = number(v);
  else if (const char* v = value_of(word, "hot_percent"))
    p.hot_percent = percent(v);
  else if (const char* v = value_of(word, "hot_set_percent"))
    p.hot_set_percent = percent(v);
  else if (const char* v = value_of(word, "rewrite_same_percent"))
    p.rewrite_same_percent = percent(v);
  else if (const char* v = value_of(word, "fill_words"))
    p.fill_words = number(v);
  else if (const char* v = value_of(word, "verify"))
    p.verify = number(v);
  else if (const char* v = value_of(word, "report"))
    p.report = number(v);
  else if (const char* v = value_of(word, "panic_after"))
    p.panic_after = number(v);
  else
    give_up("unknown parameter: ", word);
}

void read_parameters() {
  parameters = kDefaults;
  static char text[1024];
  const int length = bare::read_fw_cfg_file("opt/vmshadow/witness", text, sizeof text - 1);
  char* word = nullptr;
  for (int i = 0; i <= length; ++i) {
    const bool ends = i == length || text[i] == 0 || text[i] == ' ' || text[i] == ',' ||
                      text[i] == ';' || text[i] == '\n';
    if (!ends && word == nullptr) word = &text[i];
    if (ends && word != nullptr) {
      text[i] = 0;
      take_parameter(word);
      word = nullptr;
    }
  }
  if (parameters.report == 0) parameters.report = 1;
  if (parameters.stride == 0) parameters.stride = 1;
  if (parameters.tick_us > kTickMaxUs) give_up("tick_us is at most 3000000");
  if (parameters.fill_words > kFillWordsMax) give_up("fill_words is at most 1012");
}

// ---- arena

uint32_t page_check(uint32_t nonce, uint32_t number, uint32_t page_sequence) {
  return (page_sequence * 0x9e3779b1U ^ number) * 0x85ebca6bU ^ nonce;
}

uint32_t nonce_word(int index) { return reinterpret_cast<const uint32_t*>(control.nonce)[index]; }

// Numbers above 32 bits do not occur here: the pages' upper halves are zero and stay so.
volatile uint32_t& low(uint64_t& number) { return *reinterpret_cast<uint32_t*>(&number); }

void frame_page(uint32_t index) {
  ArenaPage& page = arena[index];
  ++sequence;
  page.nonce = nonce_word(0);
  page.number = index;
  page.sequence = sequence;
  page.check = page_check(nonce_word(1), index, sequence);
  page.sequence_again = sequence;
  table[index] = sequence;
}

void fill_page(ArenaPage& page) {
  void* into = page.content;
  const void* from = noise + draw_below(kNoiseWords - kFillWordsMax);
  uint32_t words = parameters.fill_words;
  asm volatile("rep movsl" : "+D"(into), "+S"(from), "+c"(words)::"memory");
}

// Stores what is there already: dirty to the hypervisor, unchanged to a comparison.
void rewrite_same(uint32_t index) {
  volatile uint32_t& word = arena[index].number;
  const uint32_t same = word;
  word = same;
}

bool is_whole(uint32_t index) {
  const ArenaPage& page = arena[index];
  const uint32_t expected = table[index];
  return page.sequence == expected && page.sequence_again == expected && page.number == index &&
         page.nonce == nonce_word(0) && page.check == page_check(nonce_word(1), index, expected);
}

void verify_some() {
  uint32_t count = parameters.verify;
  if (count > arena_pages) count = arena_pages;
  for (uint32_t i = 0; i < count; ++i) {
    if (!is_whole(next_verify)) {
      if (control.bad == 0) control.first_bad_page = next_verify;
      ++control.bad;
    }
    if (++next_verify == arena_pages) next_verify = 0;
  }
  control.verified += count;
}

// Chooses pages; by value, so that a writing loop keeps it in registers.
struct Chooser {
  uint32_t random;
  uint32_t next;

  uint32_t draw_below(uint32_t limit) {
    random ^= random << 13;
    random ^= random >> 17;
    random ^= random << 5;
    return static_cast<uint32_t>(uint64_t{random} * limit >> 32);
  }
  template <Pattern pattern>
  uint32_t choose() {
    switch (pattern) {
      case Pattern::sequential:
        next = next + 1 < arena_pages ? next + 1 : 0;
        return next;
      case Pattern::stride:
        next = (next + parameters.stride) % arena_pages;
        return next;
      case Pattern::uniform:
        return draw_below(arena_pages);
      case Pattern::hot:
        return draw_below(100) < parameters.hot_percent ? draw_below(hot_pages)
                                                        : draw_below(arena_pages);
    }
    return 0;
  }
};

template <Pattern pattern>
void write_pages(uint32_t count) {
  Chooser chooser{random_state, next_page};
  const uint32_t nonce = nonce_word(1);
  const uint32_t same_percent = parameters.rewrite_same_percent;
  const bool fills = parameters.fill_words != 0;
  uint32_t page_sequence = sequence;
  for (; count > 0; --count) {
    const uint32_t index = chooser.choose<pattern>();
    if (same_percent != 0 && chooser.draw_below(100) < same_percent) {
      rewrite_same(index);
      continue;
    }
    ArenaPage& page = arena[index];
    ++page_sequence;
    low(page.sequence) = page_sequence;
    low(page.check) = page_check(nonce, index, page_sequence);
    low(page.sequence_again) = page_sequence;
    table[index] = page_sequence;
    if (fills) fill_page(page);
  }
  sequence = page_sequence;
  random_state = chooser.random;
  next_page = chooser.next;
}

void write_some() {
  const bool all = parameters.pages == kAll;
  const uint32_t count = all ? arena_pages : parameters.pages;
  switch (all ? Pattern::sequential : parameters.pattern) {
    case Pattern::sequential:
      write_pages<Pattern::sequential>(count);
      break;
    case Pattern::stride:
      write_pages<Pattern::stride>(count);
      break;
    case Pattern::uniform:
      write_pages<Pattern::uniform>(count);
      break;
    case Pattern::hot:
      write_pages<Pattern::hot>(count);
      break;
  }
  control.writes = sequence;
}

// ---- start

// The jitter of port accesses against the processor's clock, and the calendar clock.
void draw_nonce() {
  uint32_t words[4] = {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344};
  for (uint32_t i = 0; i < 128; ++i) {
    bare::out8(0x70, static_cast<uint8_t>(i % 10));  // a clock register
    const uint64_t now = bare::time_stamp();
    uint32_t& word = words[i % 4];
    word = (word ^ static_cast<uint32_t>(now) ^ bare::in8(0x71)) * 0x9e3779b1U;
    word ^= word >> 15 ^ static_cast<uint32_t>(now >> 32) ^ words[(i + 1) % 4] << 7;
  }
  for (int i = 0; i < 16; ++i) control.nonce[i] = static_cast<uint8_t>(words[i / 4] >> (i % 4 * 8));
  random_state = words[0] != 0 ? words[0] : 1;
}

void lay_out_memory() {
  uint64_t ram = 0;
  bare::read_fw_cfg(bare::kFwCfgRamBytes, &ram, sizeof ram);
  const uint64_t pages = uint64_t{parameters.arena_mib} * (1024 * 1024 / kPage);
  const uint64_t start = (kTableAddress + pages * 4 + 0xffff) & ~uint64_t{0xffff};
  // Below the PCI hole and inside the machine's memory.
  if (pages == 0 || start + pages * kPage > ram || start + pages * kPage > 0x80000000U) {
    give_up("the arena does not fit into the machine's memory: lower arena_mib or raise -m");
  }
  arena = reinterpret_cast<ArenaPage*>(static_cast<uint32_t>(start));
  arena_pages = static_cast<uint32_t>(pages);
  hot_pages =
      arena_pages * (parameters.hot_set_percent != 0 ? parameters.hot_set_percent : 1) / 100;
  if (hot_pages == 0) hot_pages = 1;
  for (uint32_t i = 0; i < 16; ++i) control.magic[i] = kMagic[i];
  control.version = kVersion;
  control.kind = kKindBare;
  control.arena_address = start;
  control.arena_pages = pages;
  control.table_address = kTableAddress;
  control.line_bytes = kLineBytes;
  control.first_bad_page = kNoPage;
  control.line = 1;
  control.constants_check = constants_check(control);
}

// Interrupts per tick, and the timer set accordingly.
uint32_t start_ticks() {
  const uint32_t whole = parameters.tick_us * 1193U / 1000;  // at 1.193182 MHz; 32 bits suffice
  const uint32_t per_tick = whole / kTimerCountMax + 1;
  const uint32_t count = whole / per_tick;
  bare::start_timer(static_cast<uint16_t>(count < 100 ? 100 : count));
  return per_tick;
}

}  // namespace

extern "C" [[noreturn]] void witness_main() {
  bare::start_serial();
  read_parameters();
  draw_nonce();
  lay_out_memory();
  for (uint32_t i = 0; i < arena_pages; ++i) frame_page(i);
  if (parameters.fill_words != 0) {
    for (uint32_t& word : noise) word = draw();
  }
  control.writes = sequence;
  control.started = 1;
  const uint32_t interrupts_per_tick = parameters.tick_us == 0 ? 0 : start_ticks();
  for (uint32_t tick = 0;;) {
    print_report(control, bare::put_serial);
    if (parameters.panic_after != 0 && control.line > parameters.panic_after) {
      parameters.panic_after = 0;
      bare::out8(kPvpanicPort, kPvpanicPanicked);
    }
    for (tick = 0; tick < parameters.report; ++tick) {
      for (uint32_t i = 0; i < interrupts_per_tick; ++i) wait_for_tick();
      write_some();
      verify_some();
    }
  }
}
