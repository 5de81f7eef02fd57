#include "support/page_corpus.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <random>

namespace vmshadow::bench {
namespace {

constexpr std::array<std::string_view, 3> kKindNames{"realistic", "compressible", "random"};

/// Fills one page from start to end with fragments of the kinds of data that guests hold.
class PageWriter {
 public:
  PageWriter(std::mt19937_64& random, const std::vector<std::byte>& dictionary)
      : random_(random), dictionary_(dictionary) {}

  void write(PageKind kind, std::byte* page) {
    at_ = page;
    end_ = page + kPageBytes;
    while (at_ < end_) {
      const std::uint64_t dice = random_() % 100;
      switch (kind) {
        case PageKind::random:
          noise(kPageBytes);
          break;
        case PageKind::compressible:
          words(256);
          break;
        case PageKind::realistic:
          if (dice < 34) {
            words(128 + random_() % 256);
          } else if (dice < 62) {
            pointers(8 + random_() % 24);
          } else if (dice < 78) {
            noise(64 + random_() % 112);
          } else {
            zeros(64 + random_() % 448);
          }
          break;
      }
    }
    page[random_() % kPageBytes] = std::byte{1};  // never all zero
  }

 private:
  std::size_t fit(std::size_t bytes) const {
    return std::min(bytes, static_cast<std::size_t>(end_ - at_));
  }
  void put(const void* bytes, std::size_t count) {
    count = fit(count);
    std::memcpy(at_, bytes, count);
    at_ += count;
  }
  /// Text, code, names: 8 to 39 bytes at a time out of a dictionary.
  void words(std::size_t bytes) {
    for (std::size_t done = 0; done < bytes && at_ < end_;) {
      const std::size_t length = 8 + random_() % 32;
      put(dictionary_.data() + random_() % (dictionary_.size() - 40), length);
      done += length;
    }
  }
  /// Records of a kernel address, a small number and a flag word.
  void pointers(std::size_t records) {
    for (std::size_t i = 0; i < records && at_ < end_; ++i) {
      const std::array<std::uint64_t, 3> record{0xffff888000000000 | ((random_() & 0xfffff) << 6),
                                                random_() & 0xfff, 0x1000000000002};
      put(record.data(), sizeof record);
    }
  }
  void noise(std::size_t bytes) {
    for (std::size_t done = 0; done < bytes && at_ < end_; done += sizeof(std::uint64_t)) {
      const std::uint64_t word = random_();
      put(&word, sizeof word);
    }
  }
  void zeros(std::size_t bytes) {
    bytes = fit(bytes);
    std::memset(at_, 0, bytes);
    at_ += bytes;
  }

  std::mt19937_64& random_;
  const std::vector<std::byte>& dictionary_;
  std::byte* at_{};
  std::byte* end_{};
};

}  // namespace

std::string_view page_kind_name(PageKind kind) {
  return kKindNames[static_cast<std::size_t>(kind)];
}

std::optional<PageKind> parse_page_kind(std::string_view name) {
  const auto found = std::find(kKindNames.begin(), kKindNames.end(), name);
  if (found == kKindNames.end()) return std::nullopt;
  return static_cast<PageKind>(found - kKindNames.begin());
}

PageCorpus::PageCorpus(PageKind kind, std::size_t pages, std::uint64_t seed)
    : bytes_(pages * kPageBytes) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> dictionary(kind == PageKind::compressible ? 512 : 8192);
  for (auto& b : dictionary) b = static_cast<std::byte>('a' + random() % 26);
  PageWriter writer(random, dictionary);
  for (std::size_t i = 0; i < pages; ++i) writer.write(kind, bytes_.data() + i * kPageBytes);
}

PageBatch PageCorpus::batch() const {
  PageBatch batch;
  batch.pages.reserve(pages());
  for (std::size_t i = 0; i < pages(); ++i) {
    batch.pages.push_back({BlockIndex{0}, PageNumber{i}, bytes_.data() + i * kPageBytes});
  }
  batch.memory_bytes = bytes_.size();
  return batch;
}

MachineDescription machine_with_pages(std::size_t pages) {
  MachineDescription machine;
  machine.json = "{}";
  machine.layout.blocks = {{"pc.ram", pages * kPageBytes}};
  return machine;
}

}  // namespace vmshadow::bench
