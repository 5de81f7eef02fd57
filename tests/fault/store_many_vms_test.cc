// One store for 200 VMs (fewer under a sanitizer): each has its epochs, exactly, and its quota; one
// that floods changes nothing for the others.

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <spdlog/spdlog.h>

#include <atomic>
#include <random>
#include <thread>
#include <vector>

#include "store/store.h"
#include "store/verifier.h"
#include "support/epoch_maker.h"
#include "support/manual_clock.h"
#include "support/temp_dir.h"
#include "support/thoroughness.h"

namespace vmshadow::store::many_vms_test {
namespace {

using std::chrono::seconds;
using test::EpochMaker;

constexpr std::uint64_t kEpochs = 6;
constexpr std::uint64_t kPages = 16;
/// Of every tenth VM: less than its epochs take.
constexpr std::uint64_t kQuota = std::uint64_t{96} << 10;
constexpr std::uint64_t kFloodPages = 512;

std::string vm_name(std::size_t vm) { return fmt::format("vm-{:03}", vm); }
bool has_quota(std::size_t vm) { return vm % 10 == 0; }

class StoreManyVmsTest : public testing::Test {
 protected:
  StoreManyVmsTest() { spdlog::set_level(spdlog::level::off); }
  ~StoreManyVmsTest() override { spdlog::set_level(spdlog::level::info); }

  std::unique_ptr<Store> open() {
    StoreOptions options;
    options.log.segment_bytes = 8 << 20;
    options.piece_bytes = 64 << 10;
    options.retention = {seconds(3600), seconds(0), seconds(0), seconds(0)};
    options.maintenance.interval = std::chrono::milliseconds(5);
    auto store = Store::open(
        dir_, clock_, [] { return io::make_file_system(io::FileBackend::automatic); }, options);
    EXPECT_TRUE(store) << store.error().message;
    return store ? std::move(*store) : nullptr;
  }

  /// A VM's life; what each of its epochs must read back as.
  static void live(Store& store, std::size_t vm, std::vector<test::ModelImage>& images) {
    const auto session = store.open_session(vm_name(vm), "test");
    ASSERT_TRUE(session) << session.error().message;
    EpochMaker maker(vm_name(vm), kPages);
    std::mt19937_64 random(vm);
    for (std::uint64_t epoch = 0; epoch < kEpochs; ++epoch) {
      std::vector<EpochMaker::PageWrite> writes;
      for (std::uint64_t page = 0; page < kPages; ++page) {
        if (epoch == 0 || random() % 2 == 0) writes.push_back({page, random() | 1});
      }
      const auto made = maker.make((*session)->generation(), Epoch{epoch}, epoch == 0, writes);
      const auto shipped = test::ship(**session, made);
      ASSERT_TRUE(shipped) << shipped.error().message;
      images.push_back(maker.image());
    }
  }

  /// Ships as much as it can, until the others are done, and at least two epochs.
  static void flood(Store& store, const std::atomic<std::size_t>& alive, std::uint64_t& shipped) {
    const auto session = store.open_session("flood", "test");
    ASSERT_TRUE(session) << session.error().message;
    EpochMaker maker("flood", kFloodPages);
    for (std::uint64_t epoch = 0; alive > 0 || epoch < 2; ++epoch) {
      std::vector<EpochMaker::PageWrite> writes;
      for (std::uint64_t page = 0; page < kFloodPages; ++page) writes.push_back({page, epoch + 1});
      const auto made = maker.make((*session)->generation(), Epoch{epoch}, epoch == 0, writes, 16);
      ASSERT_TRUE(test::ship(**session, made));
      ++shipped;
    }
  }

  void check(const Store& store) {
    const auto reader = store.reader();
    for (std::size_t vm = 0; vm < vms_; ++vm) {
      const auto info = reader->vm(vm_name(vm));
      ASSERT_TRUE(info) << info.error().message;
      ASSERT_FALSE(info->epochs.empty());
      EXPECT_EQ(info->epochs.back().epoch.value, kEpochs - 1) << vm_name(vm);
      if (has_quota(vm)) {
        EXPECT_LT(info->epochs.size(), kEpochs) << vm_name(vm);
      } else {
        EXPECT_EQ(info->epochs.size(), kEpochs) << vm_name(vm);
      }
      for (const EpochInfo& epoch : info->epochs) {
        const auto image = reader->open(vm_name(vm), epoch.epoch);
        ASSERT_TRUE(image) << image.error().message;
        ASSERT_EQ(test::compare(**image, images_[vm][epoch.epoch.value]), "") << vm_name(vm);
      }
    }
  }

  const std::size_t vms_ = test::vms_at_once();
  test::TempDir temp_{test::TempDir::Where::memory};
  const std::string dir_ = temp_.file("store");
  test::ManualClock clock_;
  std::vector<std::vector<test::ModelImage>> images_{vms_};
};

TEST_F(StoreManyVmsTest, ManyAndOneThatFloods) {
  auto store = open();
  ASSERT_NE(store, nullptr);
  std::atomic<std::size_t> alive = vms_;
  std::uint64_t flooded = 0;
  std::thread flooding([&] { flood(*store, alive, flooded); });
  std::vector<std::thread> vms;
  for (std::size_t vm = 0; vm < vms_; ++vm) {
    vms.emplace_back([&, vm] {
      live(*store, vm, images_[vm]);
      --alive;
    });
  }
  for (std::thread& vm : vms) vm.join();
  flooding.join();
  ASSERT_FALSE(HasFailure());
  EXPECT_GT(flooded, 1u);
  for (std::size_t vm = 0; vm < vms_; vm += 10) {
    const auto set = store->set_quota(vm_name(vm), kQuota);
    ASSERT_TRUE(set) << set.error().message;
  }
  ASSERT_TRUE(store->maintain());
  ASSERT_NO_FATAL_FAILURE(check(*store));
  store.reset();
  store = open();
  ASSERT_NE(store, nullptr);
  ASSERT_NO_FATAL_FAILURE(check(*store));
  const auto report = Verifier::run(dir_);
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_TRUE(report->damage.empty()) << report->damage[0].text();
}

}  // namespace
}  // namespace vmshadow::store::many_vms_test
