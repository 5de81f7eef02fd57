// A full disk refuses an epoch and costs no other; when there is room again, epochs are taken
// again.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <thread>

#include "store/reader.h"
#include "store/store.h"
#include "support/faulty_file.h"
#include "support/store_model.h"
#include "support/temp_dir.h"

namespace vmshadow::store {
namespace {

using test::EpochMaker;
using testing::HasSubstr;

std::vector<EpochMaker::PageWrite> many_pages(std::uint64_t count, std::uint64_t stamp) {
  std::vector<EpochMaker::PageWrite> writes;
  for (std::uint64_t page = 0; page < count; ++page) writes.push_back({page, stamp + page});
  return writes;
}

class StoreDiskFullTest : public testing::Test {
 protected:
  std::unique_ptr<Store> open(StoreOptions options = {}) {
    auto store = Store::open(
        dir_, system_clock(), [&] { return disk_.file_system(); }, options);
    EXPECT_TRUE(store) << store.error().message;
    return std::move(*store);
  }
  /// Too small a disk to reserve space on: what is written is what is used.
  StoreDiskFullTest() { disk_.set_capacity(4 << 20); }
  test::TempDir temp_{test::TempDir::Where::memory};
  const std::string dir_ = temp_.file("store");
  test::FaultyDisk disk_;
  test::StoreModel model_;
};

TEST_F(StoreDiskFullTest, TheEpochIsRefusedAndTheNextTaken) {
  StoreOptions options;
  options.piece_bytes = 20'000;
  EpochMaker maker("web", 64);
  {
    auto store = open(options);
    auto session = store->open_session("web", "p");
    ASSERT_TRUE(session);
    EpochSession& s = **session;
    ASSERT_TRUE(model_.ship(s, maker, maker.make(s.generation(), Epoch{0}, true, {{1, 1}})));
    const std::uint64_t used = disk_.used_bytes();
    disk_.set_capacity(used + 60'000);

    auto refused =
        model_.ship(s, maker, maker.make(s.generation(), Epoch{1}, false, many_pages(64, 5)));
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, Errc::no_space);
    EXPECT_THAT(refused.error().message, HasSubstr(dir_));
    EXPECT_THAT(refused.error().message, HasSubstr("free"));
    EXPECT_THAT(refused.error().message, HasSubstr("epoch 1 of VM 'web'"));
    EXPECT_EQ(disk_.used_bytes(), used) << "the room it took is given back";

    // A smaller one fits, and with more room the big one.
    const auto smaller =
        model_.ship(s, maker, maker.make(s.generation(), Epoch{1}, false, {{2, 2}}));
    ASSERT_TRUE(smaller) << smaller.error().message;
    disk_.set_capacity(used + 1'000'000);
    ASSERT_TRUE(
        model_.ship(s, maker, maker.make(s.generation(), Epoch{2}, false, many_pages(64, 5))));
    EXPECT_EQ(model_.check(*store->reader()), "");
  }
  auto store = open();
  EXPECT_TRUE(store->damage().empty());
  EXPECT_FALSE(store->torn_tail());
  EXPECT_EQ(model_.check(*store->reader()), "");
}

TEST_F(StoreDiskFullTest, NoRoomForANewSegment) {
  StoreOptions options;
  options.log.segment_bytes = 30'000;
  EpochMaker maker("web", 64);
  auto store = open(options);
  auto session = store->open_session("web", "p");
  ASSERT_TRUE(session);
  EpochSession& s = **session;
  ASSERT_TRUE(model_.ship(s, maker, maker.make(s.generation(), Epoch{0}, true, {{1, 1}})));
  disk_.set_capacity(disk_.used_bytes() + 1'000);
  auto refused =
      model_.ship(s, maker, maker.make(s.generation(), Epoch{1}, false, many_pages(8, 5)));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Errc::no_space);
  EXPECT_FALSE(std::filesystem::exists(dir_ + "/segments/0000000000000002.seg"));
  disk_.clear_faults();
  ASSERT_TRUE(model_.ship(s, maker, maker.make(s.generation(), Epoch{1}, false, many_pages(8, 5))));
  EXPECT_EQ(model_.check(*store->reader()), "");
}

TEST_F(StoreDiskFullTest, NoRoomForAGrant) {
  auto store = open();
  disk_.set_capacity(disk_.used_bytes() + 10);
  const auto session = store->open_session("web", "p");
  ASSERT_FALSE(session);
  EXPECT_EQ(session.error().code, Errc::no_space);
  EXPECT_THAT(session.error().message, HasSubstr("VM 'web'"));
  disk_.clear_faults();
  EXPECT_TRUE(store->open_session("web", "p")) << "the name is free again";
}

TEST_F(StoreDiskFullTest, ATruncationThatFailsPoisons) {
  EpochMaker maker("web", 64);
  auto store = open();
  auto session = store->open_session("web", "p");
  ASSERT_TRUE(session);
  EpochSession& s = **session;
  ASSERT_TRUE(model_.ship(s, maker, maker.make(s.generation(), Epoch{0}, true, {{1, 1}})));
  disk_.fail_at(disk_.operations(), ENOSPC, 100);
  disk_.fail_at(disk_.operations() + 1, EIO);
  auto refused = model_.ship(s, maker, maker.make(s.generation(), Epoch{1}, false, {{1, 2}}));
  ASSERT_FALSE(refused);
  refused = model_.ship(s, maker, maker.make(s.generation(), Epoch{1}, false, {{1, 2}}));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Errc::io);
  session->reset();
  store.reset();
  store = open();
  EXPECT_TRUE(store->damage().empty());
  EXPECT_EQ(model_.check(*store->reader()), "");
}

TEST_F(StoreDiskFullTest, SpareFilesGoBeforeAnEpochDoes) {
  StoreOptions options;
  options.piece_bytes = 20'000;
  options.log.vm_queue_bytes = 30'000;  // so that an epoch takes several writes
  options.background_maintenance = false;
  options.maintenance.spares_ahead = 2;
  options.maintenance.spare_bytes = options.log.segment_bytes = 400'000;
  EpochMaker maker("web", 64);
  auto store = open(options);
  auto session = store->open_session("web", "p");
  ASSERT_TRUE(session);
  EpochSession& s = **session;
  ASSERT_TRUE(model_.ship(s, maker, maker.make(s.generation(), Epoch{0}, true, {{1, 1}})));
  ASSERT_TRUE(store->maintain());
  ASSERT_TRUE(store->maintain());
  ASSERT_GT(store->stats().tiers.at(0).spare_bytes, 800'000u);
  // Some of its pieces are written, and not durable, when the disk is full.
  int writes = 0;
  disk_.on_operation([&](const test::FaultyDisk::Operation& operation) {
    if (operation.kind != test::FaultyDisk::OperationKind::write || ++writes != 3) return;
    disk_.fail_at(operation.number, ENOSPC, 700);
  });
  const auto taken =
      model_.ship(s, maker, maker.make(s.generation(), Epoch{1}, false, many_pages(64, 5)));
  disk_.on_operation({});
  ASSERT_TRUE(taken) << taken.error().message;
  ASSERT_GT(writes, 3);
  EXPECT_EQ(store->stats().tiers.at(0).spare_bytes, 0u);
  EXPECT_EQ(model_.check(*store->reader()), "");
}

TEST_F(StoreDiskFullTest, ASegmentIsBegunOnceMoreWithoutSpareFiles) {
  StoreOptions options;
  options.background_maintenance = false;
  options.maintenance.spares_ahead = 2;
  options.maintenance.spare_bytes = options.log.segment_bytes = 400'000;
  auto store = open(options);
  ASSERT_TRUE(store->maintain());
  ASSERT_TRUE(store->maintain());
  // As a file system may need room to write anew what is there.
  int writes = 0;
  disk_.on_operation([&](const test::FaultyDisk::Operation& operation) {
    if (operation.kind != test::FaultyDisk::OperationKind::write || ++writes > 1) return;
    EXPECT_THAT(operation.path, testing::EndsWith(".spare"));
    disk_.fail_at(operation.number, ENOSPC);
  });
  const auto session = store->open_session("web", "p");
  ASSERT_TRUE(session) << session.error().message;
  disk_.on_operation({});
  EXPECT_EQ(store->stats().tiers.at(0).spare_bytes, 0u);
}

TEST_F(StoreDiskFullTest, WhatWasCutOffARecycledFileIsNotCounted) {
  StoreOptions options;
  options.background_maintenance = false;
  options.maintenance.spares_ahead = 1;
  options.maintenance.spare_bytes = options.log.segment_bytes = 400'000;
  EpochMaker maker("web", 64);
  auto store = open(options);
  ASSERT_TRUE(store->maintain());
  auto session = store->open_session("web", "p");
  ASSERT_TRUE(session);
  EpochSession& s = **session;
  ASSERT_EQ(store->stats().recycled_segments, 1u);
  const auto stored = [&] { return store->stats().tiers.at(0).stored_bytes; };
  const std::string path = dir_ + "/segments/0000000000000002.seg";
  EXPECT_EQ(stored(), std::filesystem::file_size(path));
  disk_.fail_at(disk_.operations(), ENOSPC, 100);
  ASSERT_FALSE(model_.ship(s, maker, maker.make(s.generation(), Epoch{0}, true, {{1, 1}})));
  ASSERT_LT(std::filesystem::file_size(path), 100'000u);
  EXPECT_EQ(stored(), std::filesystem::file_size(path));
}

// The disk is full again and again while VMs commit side by side: nobody's acknowledged epoch is
// lost.
TEST_F(StoreDiskFullTest, ManyVmsAtTheEdge) {
  constexpr int kVms = 4;
  StoreOptions options;
  options.piece_bytes = 8'000;
  options.log.segment_bytes = 200'000;
  std::vector<test::StoreModel> models(kVms);
  std::uint64_t refused_epochs = 0;
  {
    auto store = open(options);
    disk_.set_capacity(600'000);
    std::mutex mutex;
    std::vector<std::thread> threads;
    for (int i = 0; i < kVms; ++i) {
      threads.emplace_back([&, i] {
        EpochMaker maker("vm" + std::to_string(i), 32);
        auto session = store->open_session(maker.vm_name(), "p");
        ASSERT_TRUE(session) << session.error().message;
        bool full = true;
        for (std::uint64_t e = 0; e < 30; ++e) {
          const auto made = maker.make((*session)->generation(), (*session)->next_epoch(), full,
                                       many_pages(e % 7 == 0 ? 20 : 2, e * 100));
          const auto shipped = models[i].ship(**session, maker, made);
          if (shipped) full = false;
          if (!shipped) {
            EXPECT_EQ(shipped.error().code, Errc::no_space) << shipped.error().message;
            const std::lock_guard lock(mutex);
            ++refused_epochs;
          }
        }
      });
    }
    for (auto& thread : threads) thread.join();
    for (const auto& model : models) {
      model_.acknowledged.insert(model.acknowledged.begin(), model.acknowledged.end());
    }
    EXPECT_EQ(model_.check(*store->reader()), "");
  }
  EXPECT_GT(refused_epochs, 0u);
  disk_.clear_faults();
  auto store = open();
  EXPECT_TRUE(store->damage().empty());
  EXPECT_EQ(model_.check(*store->reader()), "");
}

}  // namespace
}  // namespace vmshadow::store
