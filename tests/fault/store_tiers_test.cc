// Tiers with little room, disks that are not there, and readers beside a store at work.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <spdlog/spdlog.h>

#include <atomic>
#include <filesystem>
#include <thread>

#include "store/reader.h"
#include "store/store.h"
#include "store/verifier.h"
#include "support/manual_clock.h"
#include "support/store_model.h"
#include "support/temp_dir.h"

namespace vmshadow::store {
namespace {

using std::chrono::hours;
using std::chrono::seconds;
using test::EpochMaker;
using testing::HasSubstr;

namespace fs = std::filesystem;

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;

std::uint64_t bytes_in(const std::string& directory) {
  std::uint64_t bytes = 0;
  for (const auto& file : fs::directory_iterator(directory + "/segments"))
    bytes += file.file_size();
  return bytes;
}

class StoreTiersTest : public testing::Test {
 protected:
  StoreTiersTest() {
    spdlog::set_level(spdlog::level::off);
    options_.log.segment_bytes = 128 << 10;
    options_.log.room_bytes_min = 0;
    options_.maintenance.archive_segment_bytes = 256 << 10;
    options_.background_maintenance = false;
  }
  ~StoreTiersTest() override { spdlog::set_level(spdlog::level::info); }

  Result<std::unique_ptr<Store>> open() {
    return Store::open(
        dir_, clock_, [] { return io::make_file_system(io::FileBackend::syscalls); }, options_);
  }
  std::unique_ptr<Store> must_open() {
    auto store = open();
    EXPECT_TRUE(store) << store.error().message;
    return store ? std::move(*store) : nullptr;
  }
  /// An epoch of some pages, of which the first few come again and again.
  Status ship(EpochSession& session) {
    std::vector<EpochMaker::PageWrite> writes;
    for (std::uint64_t i = 0; i < 4; ++i) writes.push_back({i, ++stamp_});
    for (std::uint64_t i = 0; i < 8; ++i) writes.push_back({8 + (next_page_++ % 48), ++stamp_});
    auto shipped = model_.ship(
        session, web_, web_.make(session.generation(), session.next_epoch(), full_, writes));
    if (shipped) full_ = false;
    return shipped;
  }
  std::string check(const Store& store) const {
    for (const auto& [epoch, model] : model_.acknowledged.at("web")) {
      const auto image = store.reader()->open("web", Epoch{epoch});
      if (!image) continue;  // thinned
      if (auto trouble = test::compare(**image, model); !trouble.empty()) return trouble;
    }
    return {};
  }

  test::TempDir temp_{test::TempDir::Where::memory};
  const std::string dir_ = temp_.file("store");
  const std::string ssd_ = temp_.file("ssd");
  const std::string hdd_ = temp_.file("hdd");
  test::ManualClock clock_;
  StoreOptions options_;
  EpochMaker web_{"web", 64};
  test::StoreModel model_;
  std::uint64_t stamp_ = 0;
  std::uint64_t next_page_ = 0;
  bool full_ = true;
};

TEST_F(StoreTiersTest, CapacitiesAreKept) {
  options_.tiers = {{TierKind::ssd, ssd_, 3 * kMiB}, {TierKind::hdd, hdd_, 0}};
  options_.retention = {hours(1), seconds(0), seconds(0), seconds(0)};
  auto store = must_open();
  auto session = store->open_session("web", "a");
  ASSERT_TRUE(session);
  for (int i = 0; i < 120; ++i) {
    clock_.advance(seconds(5));
    ASSERT_TRUE(ship(**session)) << "epoch " << i;
    if (i % 2 == 1) {
      const auto passed = store->maintain();
      ASSERT_TRUE(passed) << passed.error().message;
      ASSERT_LE(bytes_in(ssd_), 3 * kMiB) << "epoch " << i;
    }
  }
  EXPECT_GT(bytes_in(hdd_), 2 * kMiB);
  EXPECT_EQ(check(*store), "");
  EXPECT_EQ(store->reader()->vm("web")->epochs.size(), 120u);
}

/// The window is of time that passed, not of what somebody set the clock to.
TEST_F(StoreTiersTest, AClockThatIsSetAheadThinsNothing) {
  options_.retention = {seconds(60), hours(1), seconds(0), seconds(0)};
  auto store = must_open();
  auto session = store->open_session("web", "a");
  ASSERT_TRUE(session);
  const auto ship_each_second = [&](int epochs) {
    for (int i = 0; i < epochs; ++i) {
      clock_.advance(seconds(1));
      ASSERT_TRUE(ship(**session));
      ASSERT_TRUE(store->maintain());
    }
  };
  ship_each_second(20);
  clock_.set_ahead(hours(24 * 365));
  ship_each_second(20);
  EXPECT_EQ(store->stats().epochs, 40U);
  // Time that does pass thins them: of the first minute, which ends 40 s after the start, its
  // newest stays.
  ship_each_second(200);
  EXPECT_LT(store->stats().epochs, 60U + 60U + 5U);
  EXPECT_TRUE(store->reader()->open("web", Epoch{38}));
  EXPECT_EQ(check(*store), "");
}

/// Moved out of the journal before it is thinned, most of a minute would be moved for nothing.
TEST_F(StoreTiersTest, AMinuteStaysInTheJournalUntilItIsThinned) {
  options_.retention = {seconds(60), hours(1), seconds(0), seconds(0)};
  auto store = must_open();
  auto session = store->open_session("web", "a");
  ASSERT_TRUE(session);
  const std::int64_t begin_s = clock_.wall().ns / 1'000'000'000;
  const std::int64_t thinned_s = (begin_s / 60 + 1) * 60 + 60;  // its first minute is
  while (clock_.wall().ns / 1'000'000'000 + 5 < thinned_s) {
    clock_.advance(seconds(5));
    ASSERT_TRUE(ship(**session));
    ASSERT_TRUE(store->maintain());
    ASSERT_EQ(store->stats().moved_bytes, 0u);
  }
  const auto before = store->stats();
  EXPECT_GT(clock_.wall().ns / 1'000'000'000, begin_s + 60) << "some of it is behind the window";
  EXPECT_GT(before.journal_segments, 2u) << "and could be moved";
  clock_.advance(seconds(5));
  ASSERT_TRUE(ship(**session));
  ASSERT_TRUE(store->maintain());
  EXPECT_GT(store->stats().moved_bytes, 0u);
  EXPECT_LT(store->stats().epochs, before.epochs);
  EXPECT_EQ(check(*store), "");
}

TEST_F(StoreTiersTest, WhatIsReadAgainAndAgainMovesToTheFastTier) {
  options_.tiers = {{TierKind::ssd, ssd_, 64 * kMiB}, {TierKind::hdd, hdd_, 64 * kMiB}};
  options_.retention = {seconds(10), hours(1), seconds(0), seconds(0)};
  options_.maintenance.tier_room_min = 0;
  auto store = must_open();
  auto session = store->open_session("web", "a");
  ASSERT_TRUE(session);
  for (int i = 0; i < 6; ++i) {  // most pages change once
    clock_.advance(seconds(20));
    ASSERT_TRUE(ship(**session));
  }
  session->reset();
  clock_.advance(hours(1));
  ASSERT_TRUE(store->maintain());
  const auto on_hdd = [&] { return store->stats().tiers.at(1).live_bytes; };
  ASSERT_GT(on_hdd(), 0u);
  EXPECT_EQ(store->stats().tiers[1].read_bytes, 0u);

  // Once in twenty days is not again and again.
  const auto before = on_hdd();
  for (int i = 0; i < 3; ++i) {
    const auto image = store->reader()->open("web", Epoch{5});
    ASSERT_TRUE(image) << image.error().message;
    const auto take = [](PageNumber, const std::byte*) { return Status(); };
    ASSERT_TRUE((*image)->for_each_page(BlockIndex{0}, take));
    ASSERT_TRUE(store->maintain());
    clock_.advance(hours(24 * 20));
  }
  EXPECT_GT(store->stats().tiers[1].read_bytes, 0u);
  EXPECT_EQ(on_hdd(), before);

  std::map<SegmentId, std::uint64_t> reads;  // as a restore in another process says
  for (std::uint64_t id = 1; id < 100; ++id) reads[SegmentId{id}] = 8 * kMiB;
  store->note_reads(reads);
  ASSERT_TRUE(store->maintain());
  EXPECT_LT(on_hdd(), before);
  EXPECT_EQ(check(*store), "");
}

TEST_F(StoreTiersTest, UpkeepThatHasNothingToDoMovesNothing) {
  options_.tiers = {{TierKind::ssd, ssd_, 3 * kMiB}, {TierKind::hdd, hdd_, 4 * kMiB}};
  options_.retention = {seconds(60), seconds(1200), seconds(0), seconds(0)};
  auto store = must_open();
  auto session = store->open_session("web", "a");
  ASSERT_TRUE(session);
  for (int i = 0; i < 80; ++i) {
    clock_.advance(seconds(5));
    ASSERT_TRUE(ship(**session));
    if (i % 2 == 1) {
      ASSERT_TRUE(store->maintain());
    }
  }
  session->reset();
  clock_.advance(hours(1));
  ASSERT_TRUE(store->maintain());
  const std::uint64_t moved = store->stats().moved_bytes;
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(store->maintain());
  EXPECT_EQ(store->stats().moved_bytes, moved);
  EXPECT_EQ(check(*store), "");
}

TEST_F(StoreTiersTest, AFullStoreMakesRoomForItself) {
  options_.tiers = {{TierKind::ssd, ssd_, 4 * kMiB}};
  options_.retention = {seconds(60), seconds(0), seconds(0), seconds(0)};
  auto store = must_open();
  auto session = store->open_session("web", "a");
  ASSERT_TRUE(session);
  for (int round = 0; round < 3; ++round) {
    // Nothing ages while it runs full: no pass can help.
    Status last;
    for (int i = 0; i < 1000 && last; ++i) {
      last = ship(**session);
      if (i % 10 == 9) {
        const auto passed = store->maintain();
        ASSERT_TRUE(passed) << "round " << round << " epoch " << i << passed.error().message;
      }
    }
    ASSERT_FALSE(last);
    EXPECT_EQ(last.error().code, Errc::no_space) << last.error().message;
    EXPECT_THAT(last.error().message, HasSubstr("kept back for the store's upkeep"));
    EXPECT_LE(bytes_in(ssd_), 4 * kMiB);
    EXPECT_EQ(check(*store), "");
    clock_.advance(hours(1));
    const auto passed = store->maintain();
    ASSERT_TRUE(passed) << passed.error().message;
    EXPECT_EQ(check(*store), "");
    // What is refused costs the epoch: the next one is whole.
    ASSERT_TRUE(ship(**session));
  }
}

TEST_F(StoreTiersTest, AQuotaCostsTheOldestEpochs) {
  options_.retention = {hours(1), seconds(0), seconds(0), seconds(0)};
  auto store = must_open();
  auto session = store->open_session("web", "a");
  ASSERT_TRUE(session);
  for (int i = 0; i < 40; ++i) {
    clock_.advance(seconds(5));
    ASSERT_TRUE(ship(**session));
  }
  ASSERT_TRUE(store->pin("web", Epoch{3}));
  const std::uint64_t before = store->stats().vms.at(0).live_bytes;
  ASSERT_TRUE(store->set_quota("web", before / 2));
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(store->maintain());
  StoreStats stats = store->stats();
  EXPECT_EQ(stats.vms.at(0).quota_bytes, before / 2);
  EXPECT_LE(stats.vms[0].live_bytes, before / 2);
  EXPECT_GT(stats.vms[0].live_bytes, before / 4);
  const auto left = store->reader()->vm("web")->epochs;
  EXPECT_EQ(left.front().epoch, Epoch{3});
  EXPECT_EQ(left.back().epoch, Epoch{39});
  EXPECT_EQ(check(*store), "");
  // It outlives a restart, and a VM whose newest epoch alone is too much keeps that.
  session->reset();
  store.reset();
  store = must_open();
  EXPECT_EQ(store->stats().vms.at(0).quota_bytes, before / 2);
  ASSERT_TRUE(store->set_quota("web", 1));
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(store->maintain());
  EXPECT_EQ(store->reader()->vm("web")->epochs.size(), 2u);
  EXPECT_EQ(check(*store), "");
  EXPECT_EQ(store->set_quota("nobody", 1).error().code, Errc::not_found);
}

TEST_F(StoreTiersTest, AQuotaHoldsWhileEpochsComeAndAreThinned) {
  options_.retention = {seconds(100), seconds(0), seconds(0), seconds(0)};
  auto store = must_open();
  auto session = store->open_session("web", "a");
  ASSERT_TRUE(session);
  // The image alone is 64 pages.
  const std::uint64_t quota = 120 * kPageBytes;
  std::uint64_t most = 0;
  for (int i = 0; i < 120; ++i) {
    clock_.advance(seconds(5));
    ASSERT_TRUE(ship(**session));
    ASSERT_TRUE(store->maintain());
    if (i == 40) {
      EXPECT_GT(store->stats().vms.at(0).live_bytes, quota) << "or there is nothing to do";
      ASSERT_TRUE(store->set_quota("web", quota));
    }
    if (i > 60) most = std::max(most, store->stats().vms.at(0).live_bytes);
  }
  EXPECT_LE(most, quota + 20 * kPageBytes);
  EXPECT_GT(store->reader()->vm("web")->epochs.size(), 2u);
  EXPECT_EQ(check(*store), "");
}

TEST_F(StoreTiersTest, ADiskThatDoesNotAnswerCostsNothing) {
  options_.retention = {seconds(60), seconds(0), seconds(0), seconds(0)};
  auto store = must_open();
  auto session = store->open_session("web", "a");
  ASSERT_TRUE(session);
  for (int i = 0; i < 30; ++i) {
    clock_.advance(seconds(1));
    ASSERT_TRUE(ship(**session));
  }
  session->reset();
  clock_.advance(hours(1));
  // A directory can be opened but not read: so does a disk that is gone.
  const std::string segment = dir_ + "/segments/0000000000000001.seg";
  fs::rename(segment, segment + "-away");
  fs::create_directory(segment);
  for (int i = 0; i < 3; ++i) {
    const auto passed = store->maintain();
    ASSERT_FALSE(passed);
    EXPECT_EQ(passed.error().code, Errc::io) << passed.error().message;
    EXPECT_THAT(passed.error().message, HasSubstr("0000000000000001.seg"));
    clock_.advance(hours(1));
  }
  EXPECT_TRUE(store->damage().empty());
  store.reset();
  fs::remove(segment);
  fs::rename(segment + "-away", segment);
  store = must_open();
  const auto passed = store->maintain();
  ASSERT_TRUE(passed) << passed.error().message;
  EXPECT_TRUE(store->damage().empty());
  EXPECT_GT(store->stats().archive_segments, 0u);
  EXPECT_EQ(store->reader()->vm("web")->epochs.size(), 30u);
  EXPECT_EQ(check(*store), "");
}

TEST_F(StoreTiersTest, ADiskThatIsNotMountedIsNotTakenForAnEmptyOne) {
  options_.tiers = {{TierKind::ssd, ssd_, 0}, {TierKind::hdd, hdd_, 0}};
  must_open().reset();
  fs::rename(hdd_, hdd_ + "-away");
  fs::create_directory(hdd_);  // what it is mounted on
  for (const bool named : {true, false}) {
    if (!named) options_.tiers.pop_back();
    const auto store = open();
    ASSERT_FALSE(store);
    EXPECT_EQ(store.error().code, Errc::not_found);
    EXPECT_THAT(store.error().message, HasSubstr("is its disk mounted?"));
  }
  EXPECT_TRUE(fs::is_empty(hdd_));
  fs::remove(hdd_);
  fs::rename(hdd_ + "-away", hdd_);
  options_.tiers.clear();
  EXPECT_TRUE(must_open());
}

TEST_F(StoreTiersTest, AStoreIsItselfHoweverItIsSpelled) {
  options_.tiers = {{TierKind::ssd, dir_, 0}, {TierKind::hdd, hdd_, 0}};
  must_open().reset();
  options_.tiers.clear();
  const std::string link = temp_.file("link");
  fs::create_directory_symlink(dir_, link);
  for (const std::string& path : {dir_ + "/", temp_.file("hdd/../store"), link}) {
    EXPECT_TRUE(Store::open(
        path, clock_, [] { return io::make_file_system(io::FileBackend::syscalls); }, options_))
        << path;
    EXPECT_TRUE(Reader::open(path)) << path;
  }
  fs::rename(dir_, dir_ + "-moved");
  EXPECT_TRUE(Reader::open(dir_ + "-moved"));
}

TEST_F(StoreTiersTest, AnImageOutlivesTheSegmentsItIsReadFrom) {
  options_.tiers = {{TierKind::ssd, ssd_, 0}, {TierKind::hdd, hdd_, 0}};
  options_.retention = {seconds(40), seconds(0), seconds(0), seconds(0)};
  auto store = must_open();
  auto session = store->open_session("web", "a");
  ASSERT_TRUE(session);
  ASSERT_TRUE(ship(**session));
  const auto image = store->reader()->open("web", Epoch{0});
  ASSERT_TRUE(image) << image.error().message;
  const fs::path first_segment = fs::path(ssd_) / "segments/0000000000000001.seg";
  ASSERT_TRUE(fs::exists(first_segment));
  for (int i = 0; i < 200; ++i) {
    clock_.advance(seconds(5));
    ASSERT_TRUE(ship(**session));
  }
  ASSERT_TRUE(store->maintain());
  ASSERT_FALSE(fs::exists(first_segment)) << "it is archived";
  ASSERT_FALSE(store->reader()->open("web", Epoch{0})) << "it is thinned";
  EXPECT_EQ(test::compare(**image, model_.acknowledged["web"][0]), "");
}

TEST_F(StoreTiersTest, ReadersBesideAStoreAtWork) {
  options_.tiers = {{TierKind::ssd, ssd_, 0}, {TierKind::hdd, hdd_, 0}};
  options_.retention = {seconds(40), seconds(600), seconds(0), seconds(0)};
  options_.background_maintenance = true;
  options_.maintenance.interval = std::chrono::milliseconds(1);
  auto store = must_open();
  std::atomic<bool> done = false;
  std::atomic<int> read = 0;
  std::thread reader([&] {
    while (!done) {
      const auto beside = Reader::open(dir_);
      ASSERT_TRUE(beside) << beside.error().message;
      ASSERT_TRUE((*beside)->damage().empty()) << (*beside)->damage()[0].text();
      const auto report = Verifier::run(dir_);
      ASSERT_TRUE(report) << report.error().message;
      ASSERT_TRUE(report->damage.empty()) << report->damage[0].text();
      const auto vms = (*beside)->vms();
      ASSERT_TRUE(vms);
      for (const VmInfo& vm : *vms) {
        for (const EpochInfo& epoch : vm.epochs) {
          const auto image = (*beside)->open(vm.name, epoch.epoch);
          ASSERT_TRUE(image) << image.error().message;
          std::vector<std::byte> page(kPageBytes);
          ASSERT_TRUE((*image)->read_page(BlockIndex{0}, PageNumber{1}, page));
          ASSERT_TRUE((*image)->device_state());
        }
      }
      ++read;
    }
  });
  auto session = store->open_session("web", "a");
  ASSERT_TRUE(session);
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  int shipped = 0;
  // A reader takes its time under a sanitizer.
  while ((shipped < 100 || read < 3) && std::chrono::steady_clock::now() < until) {
    clock_.advance(seconds(5));
    if (const auto done_one = ship(**session); !done_one) {
      ADD_FAILURE() << done_one.error().message;
      break;
    }
    ++shipped;
    if (testing::Test::HasFailure()) break;
  }
  done = true;
  reader.join();
  EXPECT_GE(shipped, 100);
  EXPECT_GE(read, 3);
  EXPECT_EQ(check(*store), "");
  EXPECT_GT(store->stats().archive_segments, 0u);
}

}  // namespace
}  // namespace vmshadow::store
