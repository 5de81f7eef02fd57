// Files of segments that are given up and written anew: how many are kept, that they outlast the
// store's process, and that no file changes under who reads it.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>

#include "io/file.h"
#include "store/reader.h"
#include "store/store.h"
#include "store/verifier.h"
#include "support/manual_clock.h"
#include "support/store_model.h"
#include "support/temp_dir.h"

namespace vmshadow::store {
namespace {

using testing::HasSubstr;

class RecyclingTest : public testing::Test {
 protected:
  RecyclingTest() {
    options_.log.segment_bytes = 32'000;
    options_.log.room_bytes_min = 0;
    options_.piece_bytes = 9'000;
    options_.retention = {std::chrono::seconds(60), std::chrono::seconds(0),
                          std::chrono::seconds(0), std::chrono::seconds(0)};
    options_.maintenance.archive_segment_bytes = 30'000;
    options_.background_maintenance = false;
  }
  std::unique_ptr<Store> open_store() {
    auto store = Store::open(
        dir_, clock_, [] { return io::make_file_system(io::FileBackend::syscalls); }, options_);
    EXPECT_TRUE(store) << store.error().message;
    return std::move(*store);
  }
  /// Epochs of which all are out of the window after a minute, with upkeep between.
  void churn(Store& store, int epochs) {
    auto session = store.open_session("web", "a");
    ASSERT_TRUE(session) << session.error().message;
    for (int i = 0; i < epochs; ++i) {
      clock_.advance(std::chrono::seconds(10));
      std::vector<test::EpochMaker::PageWrite> writes;
      for (std::uint64_t page = 0; page < 4; ++page) writes.push_back({page, ++stamp_});
      const auto made =
          maker_.make((*session)->generation(), (*session)->next_epoch(), i == 0, writes, 2, 100);
      const Epoch epoch = (*session)->next_epoch();
      ASSERT_TRUE(test::ship(**session, made));
      images_[epoch.value] = maker_.image();
      if (i % 4 != 3) continue;
      ASSERT_TRUE(store.maintain());
    }
  }
  void expect_images(const ShadowReader& reader) {
    const auto info = reader.vm("web");
    ASSERT_TRUE(info) << info.error().message;
    for (const EpochInfo& epoch : info->epochs) {
      const auto image = reader.open("web", epoch.epoch);
      ASSERT_TRUE(image) << image.error().message;
      EXPECT_EQ(test::compare(**image, images_.at(epoch.epoch.value)), "");
    }
  }
  std::size_t files_ending(const std::string& suffix) const {
    std::size_t count = 0;
    for (const auto& file : std::filesystem::directory_iterator(dir_ + "/segments")) {
      if (file.path().filename().string().ends_with(suffix)) ++count;
    }
    return count;
  }

  const test::TempDir temp_{test::TempDir::Where::memory};
  const std::string dir_ = temp_.file("store");
  test::ManualClock clock_;
  StoreOptions options_;
  test::EpochMaker maker_{"web", 8};
  std::map<std::uint64_t, test::ModelImage> images_;
  std::uint64_t stamp_ = 0;
};

TEST_F(RecyclingTest, SegmentsAreBegunInSpareFiles) {
  auto store = open_store();
  churn(*store, 60);
  const StoreStats stats = store->stats();
  EXPECT_GT(stats.recycled_segments, 3u);
  EXPECT_LE(files_ending(".spare"), options_.log.spares_max);
  EXPECT_GT(files_ending(".spare"), 0u);
  std::uint64_t bytes = 0;
  for (const auto& file : std::filesystem::directory_iterator(dir_ + "/segments")) {
    if (file.path().extension() == ".spare") bytes += file.file_size();
  }
  EXPECT_EQ(stats.tiers.at(0).spare_bytes, bytes);
  expect_images(*store->reader());
  store.reset();
  const auto report = Verifier::run(dir_);
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_TRUE(report->damage.empty()) << report->damage[0].text();
  EXPECT_TRUE(report->foreign.empty());
}

TEST_F(RecyclingTest, SparesOutlastTheProcess) {
  auto store = open_store();
  churn(*store, 60);
  store.reset();
  const std::size_t spares = files_ending(".spare");
  ASSERT_GT(spares, 0u);
  store = open_store();
  EXPECT_EQ(files_ending(".spare"), spares);
  churn(*store, 4);
  EXPECT_GT(store->stats().recycled_segments, 0u);
  store.reset();
  // As many as are wanted now.
  options_.log.spares_max = 0;
  store = open_store();
  EXPECT_EQ(files_ending(".spare"), 0u);
  churn(*store, 30);
  EXPECT_EQ(store->stats().recycled_segments, 0u);
  EXPECT_EQ(files_ending(".spare"), 0u);
  expect_images(*store->reader());
}

TEST_F(RecyclingTest, ATierThatIsShortOfRoomKeepsNone) {
  auto store = open_store();
  churn(*store, 60);
  ASSERT_GT(files_ending(".spare"), 0u);
  store.reset();
  options_.tiers = {{TierKind::ssd, dir_, 1'000'000}};
  options_.maintenance.tier_room_min = 0.99;
  store = open_store();
  const auto passed = store->maintain();
  ASSERT_TRUE(passed) << passed.error().message;
  EXPECT_EQ(store->stats().tiers.at(0).spare_bytes, 0u);
}

TEST_F(RecyclingTest, NoFileChangesUnderAReader) {
  auto store = open_store();
  churn(*store, 12);
  // As shadow-replay does, in a process of its own.
  const auto reader = Reader::open(dir_);
  ASSERT_TRUE(reader) << reader.error().message;
  const auto vms = (*reader)->vm("web");
  ASSERT_TRUE(vms);
  const Epoch oldest = vms->epochs.front().epoch;
  const auto image = (*reader)->open("web", oldest);
  ASSERT_TRUE(image) << image.error().message;
  // The store's own readers as well.
  const auto own = store->reader()->open("web", vms->epochs.back().epoch);
  ASSERT_TRUE(own);
  churn(*store, 80);
  EXPECT_GT(store->stats().recycled_segments, 3u) << "later files are free";
  EXPECT_EQ(test::compare(**image, images_.at(oldest.value)), "");
  EXPECT_EQ(test::compare(**own, images_.at(vms->epochs.back().epoch.value)), "");
  expect_images(**reader);
}

TEST_F(RecyclingTest, AFileWithAnotherNameIsNotWrittenAnew) {
  // A copy of the store made of hard links stays what it was.
  auto store = open_store();
  churn(*store, 12);
  store.reset();
  const std::string copy = temp_.file("copy");
  std::map<std::string, std::string> contents;
  std::filesystem::create_directory(copy);
  const auto read = [](const std::filesystem::path& path) {
    std::ifstream in(path, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
  };
  for (const auto& file : std::filesystem::directory_iterator(dir_ + "/segments")) {
    const std::string link = copy + "/" + file.path().filename().string();
    std::filesystem::create_hard_link(file.path(), link);
    contents[link] = read(file.path());
  }
  ASSERT_GT(contents.size(), 3u);
  store = open_store();
  churn(*store, 60);
  EXPECT_GT(store->stats().recycled_segments, 3u);
  for (const auto& [path, text] : contents) EXPECT_EQ(read(path), text) << path;
}

TEST_F(RecyclingTest, ANewStoreWritesSomeAhead) {
  options_.maintenance.spares_ahead = 2;
  options_.maintenance.spare_bytes = 32'000;
  options_.maintenance.spare_bytes_per_second = 20'000;
  auto store = open_store();
  for (int pass = 0; pass < 3; ++pass) ASSERT_TRUE(store->maintain());
  EXPECT_EQ(files_ending(".spare"), 2u);
  EXPECT_EQ(store->stats().tiers.at(0).spare_bytes, 32'768u + 20'480u)
      << "the second is under way, and counts";
  for (int pass = 0; pass < 5; ++pass) ASSERT_TRUE(store->maintain());
  EXPECT_EQ(files_ending(".spare"), 2u);
  EXPECT_EQ(store->stats().tiers.at(0).spare_bytes, 2 * 32'768u);
  EXPECT_EQ(store->stats().ahead_bytes, 2 * 32'768u);
  EXPECT_GE(store->stats().written_bytes, 2 * 32'768u) << "they count as written";
  churn(*store, 4);
  EXPECT_EQ(store->stats().recycled_segments, 2u);
  expect_images(*store->reader());
  // While epochs come, none are written.
  const std::uint64_t ahead = store->stats().ahead_bytes;
  churn(*store, 40);
  EXPECT_EQ(store->stats().ahead_bytes, ahead);
}

TEST_F(RecyclingTest, ATierFullOfSparesTakesEpochs) {
  auto store = open_store();
  churn(*store, 60);
  store.reset();
  ASSERT_GT(files_ending(".spare"), 0u);
  std::uint64_t bytes = 0;
  for (const auto& file : std::filesystem::directory_iterator(dir_ + "/segments")) {
    bytes += file.file_size();
  }
  options_.log.room_bytes_min = 20'000;
  options_.log.reserve_bytes = 0;
  const std::string slow = temp_.file("slow");
  for (const bool has_slow : {true, false}) {
    options_.tiers = {{TierKind::ssd, dir_, bytes}};
    if (has_slow) options_.tiers.push_back({TierKind::hdd, slow, 0});
    store = open_store();
    const auto session = store->open_session("web", "a");
    ASSERT_TRUE(session) << session.error().message;
    EXPECT_EQ(store->stats().tiers.at(0).spare_bytes, 0u) << "they have made room";
    if (has_slow) {
      EXPECT_TRUE(std::filesystem::is_empty(slow + "/segments"));
      // Another spare, as nothing but its room is of interest.
      store.reset();
      std::ofstream(dir_ + "/segments/00000000000000ff.spare").close();
      std::filesystem::resize_file(dir_ + "/segments/00000000000000ff.spare", 40'000);
      bytes = 0;
      for (const auto& file : std::filesystem::directory_iterator(dir_ + "/segments")) {
        bytes += file.file_size();
      }
    }
  }
}

TEST_F(RecyclingTest, WhatIsWrittenAheadIsGivenUpWhenTheRoomIsNeeded) {
  options_.tiers = {{TierKind::ssd, dir_, 1'000'000}};
  options_.maintenance.tier_room_min = 0.8;
  options_.maintenance.spares_ahead = 1;
  options_.maintenance.spare_bytes = 32'000;
  options_.maintenance.spare_bytes_per_second = 20'000;
  auto store = open_store();
  ASSERT_TRUE(store->maintain());
  EXPECT_EQ(files_ending(".spare"), 1u);
  EXPECT_EQ(store->stats().tiers.at(0).spare_bytes, 20'480u);
  auto session = store->open_session("web", "a");
  ASSERT_TRUE(session);
  for (std::uint64_t epoch = 0; epoch < 12; ++epoch) {
    const auto made =
        maker_.make((*session)->generation(), Epoch{epoch}, epoch == 0,
                    {{0, ++stamp_}, {1, ++stamp_}, {2, ++stamp_}, {3, ++stamp_}}, 2, 100);
    ASSERT_TRUE(test::ship(**session, made));
  }
  ASSERT_GT(store->stats().tiers.at(0).stored_bytes, 200'000u) << "the tier is short now";
  ASSERT_TRUE(store->maintain());
  EXPECT_EQ(files_ending(".spare"), 0u) << "though epochs came, so that none is written";
  EXPECT_EQ(store->stats().tiers.at(0).spare_bytes, 0u);
}

/// Segments that a pass gives up become spares. That is no reason to drain what is young.
TEST_F(RecyclingTest, SparesDoNotMakeATierShort) {
  options_.log.spares_max = 32;  // all that is given up
  auto store = open_store();
  auto session = store->open_session("web", "a");
  ASSERT_TRUE(session);
  const auto ship = [&](int epochs) {
    for (int i = 0; i < epochs; ++i) {
      const Epoch epoch = (*session)->next_epoch();
      const auto made =
          maker_.make((*session)->generation(), epoch, epoch.value == 0,
                      {{0, ++stamp_}, {1, ++stamp_}, {2, ++stamp_}, {3, ++stamp_}}, 2, 100);
      ASSERT_TRUE(test::ship(**session, made));
    }
  };
  ship(5);
  const std::size_t old = files_ending(".seg");
  clock_.advance(std::chrono::minutes(10));
  ship(5);
  session->reset();
  store.reset();
  const std::size_t young = files_ending(".seg") - old;
  ASSERT_GT(young, 2U);
  std::uint64_t bytes = 0;
  for (const auto& file : std::filesystem::directory_iterator(dir_ + "/segments")) {
    bytes += file.file_size();
  }
  const auto capacity = static_cast<double>(4 * bytes);
  options_.tiers = {{TierKind::ssd, dir_, 4 * bytes}};
  options_.maintenance.tier_room_min = (capacity - static_cast<double>(bytes) - 16'000) / capacity;
  store = open_store();
  ASSERT_TRUE(store->maintain());
  EXPECT_GT(store->stats().removed_bytes, 0u) << "what is old was given up";
  EXPECT_GE(store->stats().journal_segments, young);
}

TEST_F(RecyclingTest, ATierThatIsLeftOutKeepsNone) {
  const std::string other = temp_.file("other");
  options_.tiers = {{TierKind::ssd, dir_, 0}, {TierKind::ssd, other, 0}};
  open_store();
  const std::string spare = other + "/segments/0000000000000007.spare";
  std::ofstream(spare) << "anything";
  options_.tiers = {{TierKind::ssd, dir_, 0}};
  open_store();
  EXPECT_FALSE(std::filesystem::exists(spare));
}

TEST(RewriteLockTest, ExcludesReadersAndIsExcludedByThem) {
  const test::TempDir temp;
  const std::string path = temp.file("a");
  std::ofstream(path) << "one";
  {
    const auto reader = io::open_shared(path);
    ASSERT_TRUE(reader) << reader.error().message;
    ASSERT_TRUE(io::open_shared(path)) << "readers do not mind one another";
    const auto writer = io::lock_for_rewriting(path);
    ASSERT_FALSE(writer);
    EXPECT_EQ(writer.error().code, Errc::in_use);
    EXPECT_THAT(writer.error().message, HasSubstr("is being read"));
  }
  const auto writer = io::lock_for_rewriting(path);
  ASSERT_TRUE(writer) << writer.error().message;
  EXPECT_EQ(io::open_shared(path).error().code, Errc::not_found);
  EXPECT_EQ(io::open_shared(temp.file("b")).error().code, Errc::not_found);
}

}  // namespace
}  // namespace vmshadow::store
