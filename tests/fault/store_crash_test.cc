// Power cuts and write errors at every single operation of a small mixed workload: whatever was
// acknowledged is there afterwards, bit for bit, and nothing else but what nobody heard of.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <spdlog/spdlog.h>

#include "store/reader.h"
#include "store/store.h"
#include "store/verifier.h"
#include "support/faulty_file.h"
#include "support/store_model.h"
#include "support/temp_dir.h"
#include "support/thoroughness.h"

namespace vmshadow::store {
namespace {

using test::EpochMaker;
using testing::HasSubstr;

StoreOptions small_options() {
  StoreOptions options;
  options.log.segment_bytes = 48'000;
  options.piece_bytes = 9'000;
  return options;
}

/// Two VMs, taking turns: full and later epochs, one abandoned, two generations. Goes on where it
/// can after an error, as sidecars do.
class Workload {
 public:
  explicit Workload(std::string dir) : dir_(std::move(dir)) {}

  void run(test::FaultyDisk& disk) {
    for (int round = 0; round < 2; ++round) {
      auto store = Store::open(
          dir_, system_clock(), [&] { return disk.file_system(); }, small_options());
      if (!store) {
        errors.push_back(store.error());
        continue;
      }
      run_round(**store);
    }
  }
  /// One more epoch of each VM on a good disk.
  Status run_on(Store& store) {
    for (EpochMaker* maker : {&web_, &db_}) {
      VMSHADOW_ASSIGN(auto session, store.open_session(maker->vm_name(), "again"));
      VMSHADOW_TRY(model.ship(
          *session, *maker,
          maker->make(session->generation(), session->next_epoch(), true, {{1, 77}, {2, 78}})));
    }
    return {};
  }

  test::StoreModel model;
  std::vector<Error> errors;

 private:
  void run_round(Store& store) {
    auto web = store.open_session("web", "a");
    auto db = store.open_session("db", "b");
    for (const auto* session : {&web, &db}) {
      if (!*session) errors.push_back(session->error());
    }
    if (!web || !db) return;
    bool web_full = true;
    bool db_full = true;
    for (std::uint64_t i = 0; i < 4; ++i) {
      // Pieces of an epoch of `web` lie in the log before an epoch of `db` commits.
      const std::uint64_t n = ++stamp_ * 100;
      const auto dropped = web_.make((*web)->generation(), (*web)->next_epoch(), web_full,
                                     {{3, n + 1}, {4, n + 2}, {5, n + 3}}, 1);
      web_.take_back();
      if (i == 1) {
        for (const auto& record : dropped.records) {
          if (!(*web)->append(record)) break;
        }
      }
      ship(**db, db_, db_full, {{i, n + 4}, {i + 1, n + 5}, {9, 0}});
      (*web)->abandon();
      ship(**web, web_, web_full, {{i, n + 6}, {i + 2, 0}, {7, n + 7}, {8, n + 8}, {9, n + 9}});
    }
  }
  void ship(EpochSession& session, EpochMaker& maker, bool& full,
            const std::vector<EpochMaker::PageWrite>& writes) {
    const auto made = maker.make(session.generation(), session.next_epoch(), full, writes, 2, 150);
    if (auto shipped = model.ship(session, maker, made); shipped) {
      full = false;
    } else {
      errors.push_back(shipped.error());
    }
  }

  std::string dir_;
  EpochMaker web_{"web", 12};
  EpochMaker db_{"db", 12};
  std::uint64_t stamp_ = 0;
};

class StoreCrashTest : public testing::Test {
 protected:
  StoreCrashTest() { spdlog::set_level(spdlog::level::off); }
  ~StoreCrashTest() override { spdlog::set_level(spdlog::level::info); }
};

std::uint64_t count_operations() {
  const test::TempDir temp{test::TempDir::Where::memory};
  test::FaultyDisk disk;
  Workload workload(temp.file("store"));
  workload.run(disk);
  EXPECT_TRUE(workload.errors.empty()) << workload.errors[0].message;
  const auto reader = Reader::open(temp.file("store"));
  EXPECT_TRUE(reader) << reader.error().message;
  EXPECT_EQ(workload.model.check(**reader), "");
  EXPECT_EQ((*reader)->vm("web")->epochs.size(), 8u);
  return disk.operations();
}

TEST_F(StoreCrashTest, PowerCutAtEveryOperation) {
  const std::uint64_t operations = count_operations();
  ASSERT_GT(operations, 60u);
  for (std::uint64_t n = 0; n < operations; n += test::place_stride()) {
    for (std::uint64_t seed = 0; seed < 4; ++seed) {
      SCOPED_TRACE(testing::Message() << "operation " << n << ", seed " << seed);
      const test::TempDir temp{test::TempDir::Where::memory};
      test::FaultyDisk disk;
      disk.crash_at(n);
      Workload workload(temp.file("store"));
      workload.run(disk);
      disk.crash(n * 100 + seed);

      auto store = Store::open(
          temp.file("store"), system_clock(), [&] { return disk.file_system(); }, small_options());
      ASSERT_TRUE(store) << store.error().message;
      EXPECT_TRUE((*store)->damage().empty()) << (*store)->damage()[0].text();
      ASSERT_EQ(workload.model.check(*(*store)->reader()), "");
      // The journal goes on from there, and what was unheard of stays as it was found.
      const auto more = workload.run_on(**store);
      ASSERT_TRUE(more) << more.error().message;
      ASSERT_EQ(workload.model.check(*(*store)->reader()), "");
      store->reset();
      const auto reader = Reader::open(temp.file("store"));
      ASSERT_TRUE(reader) << reader.error().message;
      EXPECT_TRUE((*reader)->damage().empty()) << (*reader)->damage()[0].text();
      ASSERT_EQ(workload.model.check(**reader), "");
    }
  }
}

TEST_F(StoreCrashTest, WriteErrorAtEveryOperationPoisons) {
  const std::uint64_t operations = count_operations();
  for (std::uint64_t n = 0; n < operations; n += test::place_stride()) {
    SCOPED_TRACE(testing::Message() << "operation " << n);
    const test::TempDir temp{test::TempDir::Where::memory};
    test::FaultyDisk disk;
    disk.fail_at(n, EIO, n % 3 == 0 ? 700 : 0);
    Workload workload(temp.file("store"));
    workload.run(disk);
    // All refusals of one opened store give the same reason.
    for (std::size_t i = 1; i < workload.errors.size(); ++i) {
      EXPECT_EQ(workload.errors[i].code, Errc::io);
    }
    // Commits share syncs as their threads happen to meet, so a run may need fewer operations than
    // were counted: the fault must not hit the recovery instead.
    disk.clear_faults();
    const auto store = Store::open(
        temp.file("store"), system_clock(), [&] { return disk.file_system(); }, small_options());
    ASSERT_TRUE(store) << store.error().message;
    EXPECT_TRUE((*store)->damage().empty()) << (*store)->damage()[0].text();
    ASSERT_EQ(workload.model.check(*(*store)->reader()), "");
  }
}

TEST_F(StoreCrashTest, APoisonedLogKeepsItsReason) {
  const test::TempDir temp{test::TempDir::Where::memory};
  test::FaultyDisk disk;
  EpochMaker maker("web", 8);
  auto store = Store::open(temp.file("store"), system_clock(), [&] { return disk.file_system(); });
  ASSERT_TRUE(store);
  auto session = (*store)->open_session("web", "p");
  ASSERT_TRUE(session);
  const auto made = maker.make((*session)->generation(), Epoch{0}, true, {{1, 1}});
  ASSERT_TRUE(test::ship(**session, made));
  disk.fail_at(disk.operations() + 1, EIO);  // the sync of the next commit
  const auto next = maker.make((*session)->generation(), Epoch{1}, false, {{1, 2}});
  const auto first = test::ship(**session, next);
  ASSERT_FALSE(first);
  EXPECT_EQ(first.error().code, Errc::io);
  EXPECT_THAT(first.error().message, HasSubstr("until the store is restarted"));
  const auto second = test::ship(**session, next);
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().message, first.error().message);
  const auto other = (*store)->open_session("db", "q");
  ASSERT_FALSE(other);
  EXPECT_THAT(other.error().message, HasSubstr("until the store is restarted"));
  // Reading goes on.
  EXPECT_TRUE((*store)->reader()->open("web", Epoch{0}));
}

}  // namespace
}  // namespace vmshadow::store
