// Recycled buffers: kept while they are needed, given back after a burst.
#include <gtest/gtest.h>

#include <cstring>
#include <thread>

#include "capture/chunk_pool.h"

namespace vmshadow::capture {
namespace {

using Chunks = std::vector<std::shared_ptr<std::byte[]>>;

constexpr std::size_t kBytes = 4096;
constexpr std::size_t kPrepared = 4;
constexpr std::size_t kKept = 12;

/// An epoch that has `count` chunks in use at once.
void use(ChunkPool& pool, std::size_t count) {
  Chunks chunks;
  for (std::size_t i = 0; i < count; ++i) chunks.push_back(pool.take());
  chunks.clear();
  pool.trim();
}

TEST(ChunkPool, HoldsWhatItPrepared) {
  const ChunkPool pool(kBytes, kKept, kPrepared);
  EXPECT_EQ(pool.chunk_bytes(), kBytes);
  EXPECT_EQ(pool.kept(), kPrepared);
}

TEST(ChunkPool, KeepsWhatOneEpochAfterTheOtherNeeds) {
  ChunkPool pool(kBytes, kKept, kPrepared);
  for (int epoch = 0; epoch < 30; ++epoch) use(pool, 9);
  EXPECT_EQ(pool.kept(), 9U);
}

TEST(ChunkPool, NeverKeepsMoreThanItMay) {
  ChunkPool pool(kBytes, kKept, kPrepared);
  use(pool, 40);
  EXPECT_EQ(pool.kept(), kKept);
}

// One chunk with every small epoch, down to what was prepared.
TEST(ChunkPool, GivesBackAfterABurst) {
  ChunkPool pool(kBytes, kKept, kPrepared);
  use(pool, kKept);
  for (std::size_t left = kKept - 1; left >= kPrepared; --left) {
    use(pool, 1);
    EXPECT_EQ(pool.kept(), left);
  }
  use(pool, 1);
  EXPECT_EQ(pool.kept(), kPrepared);
}

TEST(ChunkPool, RemembersAnEpochThatComesNowAndThen) {
  ChunkPool pool(kBytes, kKept, kPrepared);
  for (int round = 0; round < 5; ++round) {
    use(pool, 10);
    use(pool, 1);
    use(pool, 1);
    EXPECT_EQ(pool.kept(), 8U);
  }
}

// What the encoder still works on counts as there.
TEST(ChunkPool, CountsWhatIsInUse) {
  ChunkPool pool(kBytes, kKept, kPrepared);
  Chunks held;
  for (int i = 0; i < 3; ++i) held.push_back(pool.take());
  for (int epoch = 0; epoch < 20; ++epoch) use(pool, 1);
  EXPECT_EQ(pool.kept(), kPrepared - held.size());
  held.clear();
  use(pool, 1);
  EXPECT_EQ(pool.kept(), kPrepared);
}

TEST(ChunkPool, ChunksComeBackFromAnyThreadAndOutliveIt) {
  std::shared_ptr<std::byte[]> last;
  {
    ChunkPool pool(kBytes, kKept, kPrepared);
    for (int round = 0; round < 200; ++round) {
      auto chunk = pool.take();
      std::memset(chunk.get(), round, kBytes);
      std::thread([mine = std::move(chunk)]() mutable { mine.reset(); }).join();
      pool.trim();
    }
    EXPECT_EQ(pool.kept(), kPrepared);
    last = pool.take();
  }
  std::memset(last.get(), 1, kBytes);
}

TEST(ChunkPool, MayPrepareNothing) {
  ChunkPool pool(kBytes, kKept, 0);
  use(pool, 2);
  for (int epoch = 0; epoch < 5; ++epoch) pool.trim();
  EXPECT_EQ(pool.kept(), 0U);
}

}  // namespace
}  // namespace vmshadow::capture
