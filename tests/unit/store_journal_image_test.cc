// Images of long chains, and of segments that go bad behind the index's back.

#include <fcntl.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <set>
#include <thread>

#include "store/reader.h"
#include "store/store.h"
#include "support/epoch_maker.h"
#include "support/temp_dir.h"

namespace vmshadow::store {
namespace {

using testing::HasSubstr;

constexpr std::uint64_t kRamPages = 2048;  // enough to be read ahead by a thread

class JournalImageTest : public testing::Test {
 protected:
  /// A full epoch of all pages and `more` that write a few each, from all over.
  void ship(int more, std::uint64_t segment_bytes) {
    StoreOptions options;
    options.log.segment_bytes = segment_bytes;
    auto store = Store::open(
        dir(), system_clock(), [] { return io::make_file_system(io::FileBackend::automatic); },
        options);
    ASSERT_TRUE(store) << store.error().message;
    auto session = (*store)->open_session("web", "p");
    ASSERT_TRUE(session) << session.error().message;
    std::vector<test::EpochMaker::PageWrite> writes;
    for (std::uint64_t page = 0; page < kRamPages; ++page) writes.push_back({page, page + 1});
    std::uint64_t random = 1;
    for (int epoch = 0; epoch <= more; ++epoch) {
      const auto made =
          maker_.make((*session)->generation(), (*session)->next_epoch(), epoch == 0, writes);
      const auto receipt = test::ship(**session, made);
      ASSERT_TRUE(receipt) << receipt.error().message;
      models_.push_back(maker_.image());
      writes.clear();
      for (int i = 0; i < 5; ++i) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        writes.push_back({(random >> 33) % kRamPages, (random >> 50) % 7});
      }
    }
  }
  std::string dir() const { return temp_.file("s"); }
  std::string segment() const {
    std::string path;
    for (const auto& file : std::filesystem::directory_iterator(dir() + "/segments")) {
      path = file.path();
    }
    return path;
  }
  std::unique_ptr<EpochImage> open(std::uint64_t epoch) {
    auto reader = Reader::open(dir());
    EXPECT_TRUE(reader);
    auto image = (*reader)->open("web", Epoch{epoch});
    EXPECT_TRUE(image) << image.error().message;
    return std::move(*image);
  }
  /// The pages that read_page() cannot read, and what it says.
  static std::set<std::uint64_t> unreadable(const EpochImage& image, std::string& message) {
    std::set<std::uint64_t> pages;
    std::vector<std::byte> out(kPageBytes);
    for (std::uint64_t page = 0; page < kRamPages; ++page) {
      const auto read = image.read_page(BlockIndex{0}, PageNumber{page}, out);
      if (read) continue;
      message = read.error().message;
      pages.insert(page);
    }
    return pages;
  }

  test::TempDir temp_;
  test::EpochMaker maker_{"web", kRamPages};
  std::vector<test::ModelImage> models_;
};

TEST_F(JournalImageTest, ALongChainOverManySegments) {
  ship(300, 100'000);
  const auto reader = Reader::open(dir());
  ASSERT_TRUE(reader);
  for (const std::uint64_t epoch : {0u, 1u, 150u, 300u}) {
    const auto image = (*reader)->open("web", Epoch{epoch});
    ASSERT_TRUE(image) << image.error().message;
    EXPECT_EQ(test::compare(**image, models_[epoch]), "") << epoch;
  }
}

TEST_F(JournalImageTest, SeveralThreadsMayBeTheFirstToRead) {
  ship(50, 1'000'000);
  const auto image = open(50);
  std::vector<std::string> trouble(4);
  std::vector<std::thread> threads;
  for (std::string& text : trouble) {
    threads.emplace_back([&] { text = test::compare(*image, models_[50]); });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(trouble, testing::Each(""));
}

TEST_F(JournalImageTest, DamageCostsThePageItIsInAndNotThoseReadWithIt) {
  ship(0, 10'000'000);
  const auto image = open(0);
  const int fd = ::open(segment().c_str(), O_RDWR);
  ASSERT_GE(fd, 0);
  ASSERT_EQ(::pwrite(fd, "damage!!", 8, 300'000), 8);
  ASSERT_EQ(::close(fd), 0);

  std::string alone;
  const auto bad = unreadable(*image, alone);
  ASSERT_EQ(bad.size(), 1u) << "the other pages of its group hold their checksums";
  EXPECT_THAT(alone, HasSubstr("record body fails its checksum"));
  std::set<std::uint64_t> seen;
  const auto all = image->for_each_page(BlockIndex{0}, [&](PageNumber page, const std::byte*) {
    seen.insert(page.value);
    return Status{};
  });
  ASSERT_FALSE(all);
  EXPECT_EQ(all.error().message,
            fmt::format("{}; page {} of block 0 is lost with it", alone, *bad.begin()));
  EXPECT_EQ(all.error().code, Errc::corrupt);
  EXPECT_EQ(seen.size(), *bad.begin()) << "all before it";
}

TEST_F(JournalImageTest, ASegmentCutShortCostsWhatWasBehindTheCut) {
  ship(0, 10'000'000);
  const auto image = open(0);
  std::filesystem::resize_file(segment(), 300'000);
  std::string alone;
  const auto bad = unreadable(*image, alone);
  EXPECT_GT(bad.size(), 4u);
  EXPECT_THAT(alone, HasSubstr("the segment ends inside the record"));
  std::size_t seen = 0;
  const auto all = image->for_each_page(BlockIndex{0}, [&](PageNumber, const std::byte*) {
    ++seen;
    return Status{};
  });
  ASSERT_FALSE(all);
  EXPECT_THAT(all.error().message, HasSubstr("the segment ends inside the record"));
  EXPECT_EQ(seen, *bad.begin());
}

}  // namespace
}  // namespace vmshadow::store
