#include "guest/linux/arena.h"

#include <algorithm>
#include <array>
#include <cstring>

#define XXH_INLINE_ALL
#define XXH_NO_XXH3
#include <xxhash.h>

namespace vmshadow::witness {
namespace {

constexpr std::size_t kMaterialPages = 1024;
constexpr std::size_t kContentBytes = sizeof(ArenaPage::content);

using PageBytes = std::span<std::uint8_t, kPage>;

constexpr std::array<std::string_view, 48> kWords = {"the ",
                                                     "of ",
                                                     "and ",
                                                     "request ",
                                                     "error ",
                                                     "to ",
                                                     "in ",
                                                     "is ",
                                                     "session ",
                                                     "value=",
                                                     "that ",
                                                     "for ",
                                                     "it ",
                                                     "with ",
                                                     "as ",
                                                     "was ",
                                                     "user_id=",
                                                     "https://www.example.org/",
                                                     "on ",
                                                     "be ",
                                                     "at ",
                                                     "by ",
                                                     "timeout ",
                                                     "connection reset by peer ",
                                                     "GET /api/v1/accounts/",
                                                     "200 ",
                                                     "404 ",
                                                     "this ",
                                                     "had ",
                                                     "not ",
                                                     "are ",
                                                     "but ",
                                                     "from ",
                                                     "or ",
                                                     "have ",
                                                     "an ",
                                                     "they ",
                                                     "which ",
                                                     "one ",
                                                     "you ",
                                                     "were ",
                                                     "all ",
                                                     "her ",
                                                     "she ",
                                                     "\n",
                                                     "2024-05-",
                                                     "index ",
                                                     "buffer overflow at offset "};

// Words with a number now and then: logs, documents, JSON.
void make_text(PageBytes page, Random& random) {
  std::size_t at = 0;
  while (at < page.size()) {
    // The smaller of two draws: a few words are frequent, most are rare.
    const auto pick = std::min(random.below(kWords.size()), random.below(kWords.size()));
    std::string_view word = kWords[pick];
    char digits[9];
    if (random.below(12) == 0) {
      put_hex(digits, random.next(), 8);
      digits[8] = ' ';
      word = {digits, sizeof digits};
    }
    const std::size_t n = std::min(word.size(), page.size() - at);
    std::memcpy(&page[at], word.data(), n);
    at += n;
  }
}

// Small objects: a pointer into one of a few regions, counters, flags, padding.
void make_objects(PageBytes page, Random& random) {
  const std::uint64_t region = 0x00007f0000000000U | random.below(16) << 32;
  for (std::size_t at = 0; at < page.size(); at += 32) {
    const std::uint64_t words[4] = {region | (random.below(1U << 22) << 4), random.below(4096),
                                    random.below(4), random.below(3) == 0 ? random.next() : 0};
    std::memcpy(&page[at], words, sizeof words);
  }
}

// Machine code is a skewed mixture of single bytes: hardly any long match.
void make_code(PageBytes page, Random& random) {
  constexpr std::uint8_t kFrequent[] = {0x48, 0x89, 0x8b, 0xe8, 0x00, 0xff, 0x0f, 0x83,
                                        0xc0, 0x45, 0x24, 0x85, 0x74, 0x4c, 0x8d, 0x01};
  for (std::size_t at = 0; at < page.size(); at += 8) {
    std::uint64_t bits = random.next();
    for (std::size_t i = 0; i < 8; ++i, bits >>= 8) {
      const auto byte = static_cast<std::uint8_t>(bits);
      page[at + i] = (byte & 0x30) != 0 ? kFrequent[byte & 15] : byte;
    }
  }
}

// Tables and stacks with much unused room.
void make_sparse(PageBytes page, Random& random) {
  std::fill(page.begin(), page.end(), std::uint8_t{0});
  for (int i = 0; i < 24; ++i) {
    const std::uint64_t word = random.next();
    std::memcpy(&page[random.below(kPage / 8) * 8], &word, sizeof word);
  }
}

void make_noise(PageBytes page, Random& random) {
  for (std::size_t at = 0; at < page.size(); at += 8) {
    const std::uint64_t word = random.next();
    std::memcpy(&page[at], &word, sizeof word);
  }
}

void make_real(PageBytes page, Random& random) {
  const auto percent = random.below(100);
  if (percent < 10)
    make_noise(page, random);
  else if (percent < 15)
    make_code(page, random);
  else if (percent < 40)
    make_objects(page, random);
  else if (percent < 60)
    make_text(page, random);
  else
    make_sparse(page, random);
}

}  // namespace

std::optional<Content> content_named(std::string_view name) {
  if (name == "real") return Content::real;
  if (name == "compressible") return Content::compressible;
  if (name == "random") return Content::random;
  return std::nullopt;
}

std::optional<Pattern> pattern_named(std::string_view name) {
  if (name == "uniform") return Pattern::uniform;
  if (name == "hot") return Pattern::hot;
  if (name == "sequential") return Pattern::sequential;
  return std::nullopt;
}

PageChooser::PageChooser(Options options, std::uint64_t arena_pages)
    : options_(options),
      arena_pages_(arena_pages),
      hot_pages_(std::max<std::uint64_t>(arena_pages * options.hot_set_percent / 100, 1)) {}

std::uint64_t PageChooser::next(Random& random) {
  switch (options_.pattern) {
    case Pattern::uniform:
      return random.below(arena_pages_);
    case Pattern::hot:
      return random.below(random.below(100) < options_.hot_percent ? hot_pages_ : arena_pages_);
    case Pattern::sequential:
      next_ = next_ + 1 < arena_pages_ ? next_ + 1 : 0;
      return next_;
  }
  return 0;
}

std::vector<std::uint8_t> make_content(Content content, std::size_t pages, std::uint64_t seed) {
  Random random(seed);
  std::vector<std::uint8_t> bytes(pages * kPage);
  for (std::size_t i = 0; i < pages; ++i) {
    const PageBytes page{&bytes[i * kPage], kPage};
    switch (content) {
      case Content::real:
        make_real(page, random);
        break;
      case Content::compressible:
        make_text(page, random);
        break;
      case Content::random:
        make_noise(page, random);
        break;
    }
  }
  return bytes;
}

Arena::Arena(std::span<ArenaPage> pages, std::span<std::uint32_t> table,
             std::span<const std::uint8_t> nonce, Content content, std::size_t change_bytes)
    : pages_(pages),
      table_(table),
      change_bytes_(change_bytes == 0 ? kContentBytes : std::min(change_bytes, kContentBytes)) {
  std::memcpy(&nonce_frame_, nonce.data(), sizeof nonce_frame_);
  std::memcpy(&nonce_seed_, nonce.data() + 8, sizeof nonce_seed_);
  material_ = make_content(content, kMaterialPages, nonce_seed_);
}

void Arena::fill(std::uint64_t& sequence, Random& random) {
  for (std::uint64_t i = 0; i < pages_.size(); ++i) {
    // Whole pages of the material, so that each page is of one kind.
    std::memcpy(pages_[i].content, &material_[random.below(kMaterialPages - 1) * kPage],
                kContentBytes);
    seal(i, ++sequence);
  }
}

void Arena::write(std::uint64_t index, std::uint64_t sequence, Random& random) {
  ArenaPage& page = pages_[index];
  if (change_bytes_ == kContentBytes) {
    std::memcpy(page.content, &material_[random.below(kMaterialPages - 1) * kPage], kContentBytes);
  } else {
    const auto from = random.below(material_.size() - change_bytes_) & ~std::uint64_t{7};
    const auto to = random.below(kContentBytes - change_bytes_ + 1) & ~std::uint64_t{7};
    std::memcpy(page.content + to, &material_[from], change_bytes_);
  }
  seal(index, sequence);
}

void Arena::seal(std::uint64_t index, std::uint64_t sequence) {
  ArenaPage& page = pages_[index];
  page.nonce = nonce_frame_;
  page.number = static_cast<std::uint32_t>(index);
  page.sequence = sequence;
  page.sequence_again = sequence;
  page.check = check_of(page);
  table_[index] = static_cast<std::uint32_t>(sequence);
}

void Arena::rewrite_same(std::uint64_t index) {
  volatile std::uint32_t& number = pages_[index].number;
  const std::uint32_t same = number;
  number = same;
}

std::uint64_t Arena::check_of(const ArenaPage& page) const {
  return XXH64(page.content, kPage - offsetof(ArenaPage, content),
               nonce_seed_ ^ page.sequence ^ std::uint64_t{page.number} << 32);
}

bool Arena::is_whole(std::uint64_t index) const {
  const ArenaPage& page = pages_[index];
  return page.nonce == nonce_frame_ && page.number == index &&
         static_cast<std::uint32_t>(page.sequence) == table_[index] &&
         page.sequence_again == page.sequence && page.check == check_of(page);
}

}  // namespace vmshadow::witness
