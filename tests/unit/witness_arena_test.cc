// The Linux witness's arena: its content compresses like real memory, and no damage goes unseen.
#include <gtest/gtest.h>
#include <lz4.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <set>
#include <vector>

#include "guest/linux/arena.h"

namespace vmshadow::witness {
namespace {

constexpr std::size_t kPages = 1024;
constexpr std::size_t kGroupBytes = 64 * 1024;

struct Fixture {
  explicit Fixture(Content content, std::size_t change_bytes = 512)
      : pages(kPages), table(kPages), arena(pages, table, nonce, content, change_bytes) {
    arena.fill(sequence, random);
  }
  std::array<std::uint8_t, 16> nonce = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};
  std::vector<ArenaPage> pages;
  std::vector<std::uint32_t> table;
  Random random{42};
  std::uint64_t sequence = 0;
  Arena arena;

  void write_many(int count) {
    for (int i = 0; i < count; ++i) arena.write(random.below(kPages), ++sequence, random);
  }
  [[nodiscard]] std::size_t bad() const {
    std::size_t count = 0;
    for (std::size_t i = 0; i < kPages; ++i) count += arena.is_whole(i) ? 0 : 1;
    return count;
  }
  [[nodiscard]] double lz4_ratio() const {
    const auto* bytes = reinterpret_cast<const char*>(pages.data());
    std::vector<char> out(LZ4_COMPRESSBOUND(kGroupBytes));
    std::size_t packed = 0;
    for (std::size_t at = 0; at < kPages * kPage; at += kGroupBytes) {
      packed += static_cast<std::size_t>(
          LZ4_compress_default(bytes + at, out.data(), kGroupBytes, static_cast<int>(out.size())));
    }
    return static_cast<double>(kPages * kPage) / static_cast<double>(packed);
  }
};

TEST(WitnessArena, CompressesLikeRealMemory) {
  Fixture f(Content::real);
  RecordProperty("lz4_ratio_percent", static_cast<int>(f.lz4_ratio() * 100));
  EXPECT_NEAR(f.lz4_ratio(), 2.4, 0.2);
  f.write_many(5000);
  RecordProperty("lz4_ratio_percent_later", static_cast<int>(f.lz4_ratio() * 100));
  EXPECT_NEAR(f.lz4_ratio(), 2.4, 0.4);
}

TEST(WitnessArena, OtherContents) {
  EXPECT_GT(Fixture(Content::compressible).lz4_ratio(), 1.8);
  EXPECT_LT(Fixture(Content::random).lz4_ratio(), 1.03);
}

TEST(WitnessArena, StaysWholeUnderWrites) {
  for (const std::size_t change_bytes : {0U, 1U, 512U, 4056U, 9999U}) {
    Fixture f(Content::real, change_bytes);
    f.write_many(3000);
    EXPECT_EQ(f.bad(), 0U) << change_bytes;
  }
}

TEST(WitnessArena, AnyChangedByteIsSeen) {
  Fixture f(Content::real);
  auto* bytes = reinterpret_cast<std::uint8_t*>(&f.pages[9]);
  for (std::size_t i = 0; i < kPage; ++i) {
    bytes[i] ^= 0x10;
    EXPECT_FALSE(f.arena.is_whole(9)) << i;
    bytes[i] ^= 0x10;
  }
  EXPECT_TRUE(f.arena.is_whole(9));
}

TEST(WitnessArena, AStalePageIsSeen) {
  Fixture f(Content::real);
  const ArenaPage old = f.pages[9];
  f.arena.write(9, ++f.sequence, f.random);
  f.pages[9] = old;  // intact, its checksum right, but not the newest
  EXPECT_FALSE(f.arena.is_whole(9));
  EXPECT_EQ(f.bad(), 1U);
}

TEST(WitnessArena, AMisplacedOrHalfWrittenPageIsSeen) {
  Fixture f(Content::real);
  f.pages[3] = f.pages[4];
  EXPECT_FALSE(f.arena.is_whole(3));

  const ArenaPage old = f.pages[9];
  f.arena.write(9, ++f.sequence, f.random);
  std::copy_n(reinterpret_cast<const std::uint8_t*>(&old) + kPage / 2, kPage / 2,
              reinterpret_cast<std::uint8_t*>(&f.pages[9]) + kPage / 2);
  EXPECT_FALSE(f.arena.is_whole(9));
}

TEST(WitnessArena, AnotherRunsPageIsSeen) {
  Fixture f(Content::real);
  std::array<std::uint8_t, 16> other = f.nonce;
  other[0] = 99;
  Arena second(f.pages, f.table, other, Content::real, 512);
  EXPECT_FALSE(second.is_whole(5));
}

TEST(WitnessArena, RewritingTheSameChangesNothing) {
  Fixture f(Content::real);
  const ArenaPage before = f.pages[7];
  f.arena.rewrite_same(7);
  EXPECT_EQ(std::memcmp(&before, &f.pages[7], kPage), 0);
  EXPECT_EQ(f.bad(), 0U);
}

TEST(PageChooser, KeepsToItsPattern) {
  Random random(7);
  PageChooser sequential({.pattern = Pattern::sequential}, 10);
  std::set<std::uint64_t> seen;
  for (int i = 0; i < 10; ++i) seen.insert(sequential.next(random));
  EXPECT_EQ(seen.size(), 10U);

  PageChooser hot({.pattern = Pattern::hot, .hot_percent = 80, .hot_set_percent = 5}, 1000);
  int in_hot_set = 0;
  for (int i = 0; i < 10000; ++i) {
    const auto page = hot.next(random);
    ASSERT_LT(page, 1000U);
    in_hot_set += page < 50 ? 1 : 0;
  }
  EXPECT_NEAR(in_hot_set, 8100, 200);  // 80 %, and 5 % of the rest

  PageChooser uniform({}, 3);
  seen.clear();
  for (int i = 0; i < 100; ++i) seen.insert(uniform.next(random));
  EXPECT_EQ(seen, (std::set<std::uint64_t>{0, 1, 2}));
}

TEST(WitnessParameters, NamesAreKnownOrRefused) {
  EXPECT_EQ(content_named("real"), Content::real);
  EXPECT_EQ(content_named("Real"), std::nullopt);
  EXPECT_EQ(pattern_named("hot"), Pattern::hot);
  EXPECT_EQ(pattern_named("stride"), std::nullopt);
}

}  // namespace
}  // namespace vmshadow::witness
