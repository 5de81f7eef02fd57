// What leaves the journal, and when: epochs are thinned before they are moved, or all that is to be
// dropped a moment later would be written once more.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "store/store.h"
#include "store/verifier.h"
#include "support/manual_clock.h"
#include "support/store_model.h"
#include "support/temp_dir.h"

namespace vmshadow::store {
namespace {

using std::chrono::seconds;

/// Once armed, calls `hook` before this thread makes, renames or removes a file, once: in the
/// middle of its own pass of upkeep, and not while the log begins a segment.
struct Interruption {
  std::function<void()> hook;
  std::atomic<bool> armed{false};
  const std::thread::id thread = std::this_thread::get_id();
  void strike() {
    if (std::this_thread::get_id() == thread && armed.exchange(false)) hook();
  }
};

class InterruptedFiles final : public io::FileSystem {
 public:
  InterruptedFiles(std::unique_ptr<io::FileSystem> files, Interruption& interruption)
      : files_(std::move(files)), interruption_(interruption) {}
  Result<std::unique_ptr<io::AppendFile>> create(const std::string& path) override {
    interruption_.strike();
    return files_->create(path);
  }
  Result<std::unique_ptr<io::AppendFile>> open(const std::string& path) override {
    return files_->open(path);
  }
  Status rename(const std::string& from, const std::string& to) override {
    interruption_.strike();
    return files_->rename(from, to);
  }
  Status remove(const std::string& path) override {
    interruption_.strike();
    return files_->remove(path);
  }
  Status sync_directory(const std::string& path) override { return files_->sync_directory(path); }
  io::DirectSupport direct_support(const std::string& directory) override {
    return files_->direct_support(directory);
  }

 private:
  std::unique_ptr<io::FileSystem> files_;
  Interruption& interruption_;
};

class DrainTest : public testing::Test {
 protected:
  static constexpr std::uint64_t kPages = 512;

  void open(const std::string& name, std::uint64_t segment_bytes = 32'000,
            double journal_dead_max = MaintenanceOptions{}.journal_dead_max) {
    session_.reset();
    store_.reset();
    StoreOptions options;
    options.log.segment_bytes = segment_bytes;
    options.log.room_bytes_min = 0;
    options.piece_bytes = 9'000;
    options.retention = {seconds(60), seconds(0), seconds(0), seconds(0)};
    options.maintenance.archive_segment_bytes = segment_bytes;
    options.maintenance.run_bytes_max = segment_bytes + segment_bytes / 4;
    options.maintenance.journal_dead_max = journal_dead_max;
    options.background_maintenance = false;
    const auto files = [this]() -> Result<std::unique_ptr<io::FileSystem>> {
      VMSHADOW_ASSIGN(auto real, io::make_file_system(io::FileBackend::syscalls));
      return std::make_unique<InterruptedFiles>(std::move(real), interruption_);
    };
    dir_ = temp_.file(name);
    auto store = Store::open(dir_, clock_, files, options);
    ASSERT_TRUE(store) << store.error().message;
    store_ = std::move(*store);
    auto session = store_->open_session("web", "a");
    ASSERT_TRUE(session) << session.error().message;
    session_ = std::move(*session);
  }
  /// One every ten seconds, all of the same pages.
  void ship(int epochs, std::uint64_t first_page = 0, std::uint64_t pages = 4) {
    for (int i = 0; i < epochs; ++i) {
      clock_.advance(seconds(10));
      std::vector<test::EpochMaker::PageWrite> writes;
      for (std::uint64_t page = 0; page < pages; ++page) {
        writes.push_back({first_page + page, ++stamp_});
      }
      const Epoch epoch = session_->next_epoch();
      const auto made =
          maker_.make(session_->generation(), epoch, epoch.value == 0, writes, 2, 100);
      ASSERT_TRUE(test::ship(*session_, made));
      images_[epoch.value] = maker_.image();
    }
  }

  const test::TempDir temp_{test::TempDir::Where::memory};
  std::string dir_;
  test::ManualClock clock_;
  Interruption interruption_;
  std::unique_ptr<Store> store_;
  std::unique_ptr<EpochSession> session_;
  test::EpochMaker maker_{"web", kPages};
  std::map<std::uint64_t, test::ModelImage> images_;
  std::uint64_t stamp_ = 0;
};

TEST_F(DrainTest, WhatAgesWhileAPassRunsIsThinnedByTheNextBeforeItIsMoved) {
  constexpr int kEpochs = 60;
  // Four pages of 4 KiB each: what a pass moves is one version of each, and no epoch's record.
  constexpr std::uint64_t kImageBytes = 4 * 4096;
  open("store");
  ship(kEpochs);
  bool interrupted = false;
  interruption_.hook = [&] {
    interrupted = true;
    ship(kEpochs);
  };
  interruption_.armed = true;
  ASSERT_TRUE(store_->maintain());
  ASSERT_TRUE(interrupted);
  const StoreStats first = store_->stats();
  EXPECT_LT(first.moved_bytes, 4 * kImageBytes);
  EXPECT_GT(first.journal_segments, kEpochs * kImageBytes / 32'000);

  interruption_.armed = false;
  ASSERT_TRUE(store_->maintain());
  const StoreStats second = store_->stats();
  EXPECT_LT(second.moved_bytes, 8 * kImageBytes);
  EXPECT_LT(second.journal_segments, first.journal_segments / 2);

  const auto reader = store_->reader();
  const auto info = reader->vm("web");
  ASSERT_TRUE(info) << info.error().message;
  EXPECT_LE(info->epochs.size(), 8u);
  for (const EpochInfo& epoch : info->epochs) {
    const auto image = reader->open("web", epoch.epoch);
    ASSERT_TRUE(image) << image.error().message;
    EXPECT_EQ(test::compare(**image, images_.at(epoch.epoch.value)), "");
  }
  session_.reset();
  store_.reset();
  const auto report = Verifier::run(dir_);
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_TRUE(report->damage.empty()) << report->damage[0].text();
}

// What has just left the window all lives; a while later it has been written again.
TEST_F(DrainTest, WhatLeavesTheWindowIsMovedTheLessTheMoreMayBeDead) {
  constexpr int kEpochs = 120;
  constexpr std::uint64_t kEpochPages = 32;
  std::vector<double> moved_shares;
  for (const double dead_max : {0.0, 1.5}) {
    SCOPED_TRACE(dead_max);
    open(fmt::format("store-{}", dead_max), 400'000, dead_max);
    for (int i = 0; i < kEpochs; ++i) {
      ship(1, (kEpochPages * static_cast<std::uint64_t>(i)) % kPages, kEpochPages);
      ASSERT_TRUE(store_->maintain());
    }
    const StoreStats stats = store_->stats();
    moved_shares.push_back(static_cast<double>(stats.moved_bytes) /
                           static_cast<double>(stats.ingested_bytes));
  }
  EXPECT_GT(moved_shares[0], 0.3);
  EXPECT_LT(moved_shares[1], moved_shares[0] / 2) << moved_shares[0];
}

}  // namespace
}  // namespace vmshadow::store
