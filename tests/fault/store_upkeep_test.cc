// Thinning, draining, compaction and tiers on a disk that fails: a mixed workload of ingest and
// upkeep, cut or refused at every operation. Afterwards each kept epoch reads back bit for bit,
// what was acknowledged and not dropped is kept, and nothing is called damaged.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <spdlog/spdlog.h>

#include "store/reader.h"
#include "store/store.h"
#include "store/verifier.h"
#include "support/faulty_file.h"
#include "support/manual_clock.h"
#include "support/store_model.h"
#include "support/temp_dir.h"
#include "support/thoroughness.h"

namespace vmshadow::store {
namespace {

using std::chrono::seconds;
using test::EpochMaker;

/// Epochs come every 20 s; all of the last minute are kept, then one a minute, then one an hour.
StoreOptions options_for(const std::string& dir, bool tiers) {
  StoreOptions options;
  options.log.segment_bytes = 32'000;
  options.log.room_bytes_min = 0;
  options.piece_bytes = 9'000;
  options.retention = {seconds(60), seconds(300), seconds(0), seconds(0)};
  options.maintenance.archive_segment_bytes = 60'000;
  options.background_maintenance = false;
  if (tiers) options.tiers = {{TierKind::ssd, dir + "-ssd", 0}, {TierKind::hdd, dir + "-hdd", 0}};
  return options;
}

class UpkeepWorkload {
 public:
  UpkeepWorkload(std::string dir, bool tiers, std::uint64_t seed)
      : dir_(std::move(dir)), tiers_(tiers), random_(seed) {}

  /// Two times open: sessions of two VMs, a pass of upkeep now and then, a pin.
  void run(test::FaultyDisk& disk) {
    for (int opened = 0; opened < 2; ++opened) {
      auto store = open(disk);
      if (!store) {
        errors.push_back(store.error());
        continue;
      }
      run_opened(**store);
    }
  }
  Result<std::unique_ptr<Store>> open(test::FaultyDisk& disk) {
    return Store::open(
        dir_, clock, [&] { return disk.file_system(); }, options_for(dir_, tiers_));
  }
  /// Compares all that a reader lists with the model. Acknowledged epochs may be missing only if a
  /// pass may have dropped them.
  [[nodiscard]] std::string check(const ShadowReader& reader) const {
    test::StoreModel kept = model;
    for (auto& [vm, images] : kept.acknowledged) {
      const auto info = reader.vm(vm);
      if (!info) return info.error().message;
      std::vector<DatedEpoch> all;
      std::map<Epoch, WallTime> times;
      // Of what nobody heard of, some was committed and may stand for others of its minute.
      for (const EpochInfo& listed : info->epochs) times[listed.epoch] = listed.committed_wall;
      for (const auto& [epoch, image] : images) times[Epoch{epoch}] = committed_.at({vm, epoch});
      for (const auto& [epoch, committed] : times) all.push_back({epoch, committed});
      std::set<Epoch> pins;
      if (const auto pin = pins_.find(vm); pin != pins_.end()) pins.insert(pin->second);
      const auto droppable = epochs_to_drop(all, options_for(dir_, tiers_).retention, pins);
      for (const Epoch epoch : droppable) {
        const bool listed = std::any_of(info->epochs.begin(), info->epochs.end(),
                                        [&](const EpochInfo& e) { return e.epoch == epoch; });
        // What is listed all the same must still be right: it stays in `acknowledged`.
        if (!listed) images.erase(epoch.value);
      }
    }
    // Unacknowledged attempts are judged against all that was ever shipped.
    return kept.check(reader);
  }

  test::StoreModel model;
  test::ManualClock clock;
  std::vector<Error> errors;
  std::uint64_t passes = 0;
  std::uint64_t built_on_base = 0;
  std::uint64_t recycled = 0;  ///< segments that were begun in the file of another

 private:
  void run_opened(Store& store) {
    auto web = store.open_session("web", "a");
    auto db = store.open_session("db", "b");
    for (const auto* session : {&web, &db}) {
      if (!*session) errors.push_back(session->error());
    }
    if (!web || !db) return;
    // One goes on from what it had, if that is what it thinks it is; the other begins anew.
    std::optional<Generation> web_base = base_of(**web, web_);
    bool web_full = !web_base;
    bool db_full = true;
    for (int i = 0; i < 9; ++i) {
      clock.advance(seconds(20));
      ship(**web, web_, web_full, web_base);
      if (i % 2 == 0) ship(**db, db_, db_full, {});
      if (i == 4 && !pins_.contains("web") && (*web)->next_epoch().value > 0) {
        const Epoch newest{(*web)->next_epoch().value - 1};
        if (auto pinned = store.pin("web", newest); pinned) {
          pins_.emplace("web", newest);
        } else {
          errors.push_back(pinned.error());
        }
      }
      if (i % 3 == 2) {
        if (auto passed = store.maintain(); passed) {
          ++passes;
        } else {
          errors.push_back(passed.error());
        }
      }
    }
    recycled += store.stats().recycled_segments;
  }
  /// The generation of the newest committed epoch, told to the session, if `maker` made it last.
  std::optional<Generation> base_of(EpochSession& session, const EpochMaker& maker) {
    const auto& images = model.acknowledged[maker.vm_name()];
    if (images.empty() || images.rbegin()->first + 1 != session.next_epoch().value) return {};
    const auto base = session.base();
    if (!base) {
      errors.push_back(base.error());
      return {};
    }
    session.may_build_on_base();
    ++built_on_base;
    return (*base)->info().generation;
  }
  void ship(EpochSession& session, EpochMaker& maker, bool& full, std::optional<Generation> label) {
    std::vector<EpochMaker::PageWrite> writes;
    for (int i = 0; i < 5; ++i) {
      // Distinct pages; now and then a zero one.
      const std::uint64_t page = (random_() % 3) + static_cast<std::uint64_t>(i) * 3;
      writes.push_back({page, random_() % 6 == 0 ? 0 : ++stamp_});
    }
    const std::uint64_t epoch = session.next_epoch().value;
    const auto made =
        maker.make(label.value_or(session.generation()), Epoch{epoch}, full, writes, 3, 150);
    if (auto shipped = model.ship(session, maker, made); shipped) {
      committed_[{maker.vm_name(), epoch}] = clock.wall();
      full = false;
    } else {
      errors.push_back(shipped.error());
    }
  }

  const std::string dir_;
  const bool tiers_;
  std::mt19937_64 random_;
  EpochMaker web_{"web", 20};
  EpochMaker db_{"db", 20};
  std::map<std::pair<std::string, std::uint64_t>, WallTime> committed_;
  std::map<std::string, Epoch> pins_;
  std::uint64_t stamp_ = 0;
};

class StoreUpkeepTest : public testing::TestWithParam<bool> {
 protected:
  StoreUpkeepTest() { spdlog::set_level(spdlog::level::off); }
  ~StoreUpkeepTest() override { spdlog::set_level(spdlog::level::info); }

  std::uint64_t count_operations() {
    const test::TempDir temp{test::TempDir::Where::memory};
    test::FaultyDisk disk;
    UpkeepWorkload workload(temp.file("store"), GetParam(), 1);
    workload.run(disk);
    EXPECT_TRUE(workload.errors.empty()) << workload.errors[0].message;
    EXPECT_EQ(workload.passes, 6u);
    EXPECT_EQ(workload.built_on_base, 1u);
    EXPECT_GT(workload.recycled, 3u);
    const auto reader = Reader::open(temp.file("store"));
    EXPECT_TRUE(reader) << reader.error().message;
    if (!reader) return 0;
    EXPECT_TRUE((*reader)->damage().empty()) << (*reader)->damage()[0].text();
    EXPECT_EQ(workload.check(**reader), "");
    const auto report = Verifier::run(temp.file("store"));
    EXPECT_TRUE(report) << report.error().message;
    EXPECT_TRUE(report->damage.empty()) << report->damage[0].text();
    // Something was dropped, and something archived.
    EXPECT_LT((*reader)->vm("web")->epochs.size(), 18u);
    auto store = workload.open(disk);
    EXPECT_TRUE(store);
    EXPECT_GT((*store)->stats().archive_segments, 0u);
    return disk.operations();
  }
  static void tell(const char* what, std::uint64_t points, std::uint64_t operations) {
    RecordProperty("points", std::to_string(points));
    fmt::print("{} tried at {} points of {} operations\n", what, points, operations);
  }
};

TEST_P(StoreUpkeepTest, PowerCuts) {
  const std::uint64_t operations = count_operations();
  ASSERT_GT(operations, 100u);
  std::uint64_t points = 0;
  for (std::uint64_t n = 0; n < operations; n += 1 + points % test::crash_stride()) {
    for (std::uint64_t seed = 0; seed < test::crash_seeds(); ++seed) {
      SCOPED_TRACE(testing::Message() << "operation " << n << ", seed " << seed);
      ++points;
      const test::TempDir temp{test::TempDir::Where::memory};
      test::FaultyDisk disk;
      disk.crash_at(n);
      UpkeepWorkload workload(temp.file("store"), GetParam(), 1);
      workload.run(disk);
      disk.crash(n * 100 + seed);
      {
        auto store = workload.open(disk);
        ASSERT_TRUE(store) << store.error().message;
        EXPECT_TRUE((*store)->damage().empty()) << (*store)->damage()[0].text();
        ASSERT_EQ(workload.check(*(*store)->reader()), "");
        // Upkeep goes on from there.
        const auto passed = (*store)->maintain();
        ASSERT_TRUE(passed) << passed.error().message;
        ASSERT_EQ(workload.check(*(*store)->reader()), "");
      }
      const auto report = Verifier::run(temp.file("store"));
      ASSERT_TRUE(report) << report.error().message;
      ASSERT_TRUE(report->damage.empty()) << report->damage[0].text();
      const auto reader = Reader::open(temp.file("store"));
      ASSERT_TRUE(reader) << reader.error().message;
      ASSERT_EQ(workload.check(**reader), "");
    }
  }
  tell("power cuts", points, operations);
}

TEST_P(StoreUpkeepTest, WriteErrorsAndFullDisks) {
  const std::uint64_t operations = count_operations();
  std::uint64_t points = 0;
  for (std::uint64_t n = 0; n < operations; n += 1 + points % test::crash_stride()) {
    for (const int error : {EIO, ENOSPC}) {
      SCOPED_TRACE(testing::Message() << "operation " << n << ", errno " << error);
      ++points;
      const test::TempDir temp{test::TempDir::Where::memory};
      test::FaultyDisk disk;
      disk.fail_at(n, error, n % 3 == 0 ? 700 : 0);
      UpkeepWorkload workload(temp.file("store"), GetParam(), 1);
      workload.run(disk);
      disk.clear_faults();
      auto store = workload.open(disk);
      ASSERT_TRUE(store) << store.error().message;
      EXPECT_TRUE((*store)->damage().empty()) << (*store)->damage()[0].text();
      ASSERT_EQ(workload.check(*(*store)->reader()), "");
      store->reset();
      const auto report = Verifier::run(temp.file("store"));
      ASSERT_TRUE(report) << report.error().message;
      ASSERT_TRUE(report->damage.empty()) << report->damage[0].text();
    }
  }
  tell("failed writes", points, operations);
}

INSTANTIATE_TEST_SUITE_P(Directories, StoreUpkeepTest, testing::Bool(),
                         [](const auto& with) { return with.param ? "SsdAndHdd" : "One"; });

}  // namespace
}  // namespace vmshadow::store
