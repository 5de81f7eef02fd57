// A real process, killed with SIGKILL again and again while several VMs ship epochs and upkeep
// thins, archives and scrubs: what it had acknowledged is there, bit for bit, and so is whatever
// else is listed. (What a power cut may lose, the suites on a disk of the tests try:
// store_upkeep_test.cc.)

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <spdlog/spdlog.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <filesystem>
#include <map>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "base/unique_fd.h"
#include "store/reader.h"
#include "store/store.h"
#include "store/verifier.h"
#include "support/epoch_maker.h"
#include "support/temp_dir.h"
#include "support/thoroughness.h"

namespace vmshadow::store::kill_test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using test::EpochMaker;
using SteadyClock = std::chrono::steady_clock;

constexpr std::size_t kVms = 4;
constexpr std::uint64_t kPages = 64;
constexpr seconds kWindow{2};
/// Acknowledged so short before the kill, nothing can be thinned.
constexpr milliseconds kSurelyKept{700};

std::string vm_name(std::size_t vm) { return "vm-" + std::to_string(vm); }

/// What the child says to the parent: a session has begun, or an epoch was acknowledged.
struct Notice {
  enum class Kind : std::uint32_t { session, acknowledged, failed };
  Kind kind{};
  std::uint32_t vm{};
  std::uint64_t generation{};
  std::uint64_t epoch{};
};

/// The same pages for the same epoch, in whichever process.
std::vector<EpochMaker::PageWrite> writes_of(std::size_t vm, Generation generation, Epoch epoch) {
  std::mt19937_64 random(vm * 1'000'003 + generation.value * 10'007 + epoch.value);
  std::vector<EpochMaker::PageWrite> writes;
  const std::uint64_t first = random() % kPages;
  const std::uint64_t count = 1 + random() % 24;
  for (std::uint64_t i = 0; i < count; ++i) {
    writes.push_back({(first + i) % kPages, random() % 8 == 0 ? 0 : random() | 1});
  }
  return writes;
}

class StoreKillTest : public testing::Test {
 protected:
  StoreKillTest() {
    spdlog::set_level(spdlog::level::off);
    options_.tiers = {{TierKind::ssd, temp_.file("ssd"), 0}, {TierKind::hdd, temp_.file("hdd"), 0}};
    options_.log.segment_bytes = 256 << 10;  // so that files are written anew within seconds
    options_.piece_bytes = 32 << 10;
    options_.retention = {kWindow, seconds(0), seconds(0), seconds(0)};
    options_.maintenance.archive_segment_bytes = 256 << 10;
    options_.maintenance.interval = milliseconds(20);
  }
  ~StoreKillTest() override { spdlog::set_level(spdlog::level::info); }

  Result<std::unique_ptr<Store>> open(bool upkeep) {
    options_.background_maintenance = upkeep;
    return Store::open(
        dir_, system_clock(), [] { return io::make_file_system(io::FileBackend::automatic); },
        options_);
  }

  /// Never returns.
  void run_child(int notices) {
    const auto store = open(true);
    if (!store) ::_exit(1);
    std::vector<std::thread> vms;
    for (std::size_t vm = 0; vm < kVms; ++vm) {
      vms.emplace_back([&, vm] {
        const auto say = [&](Notice notice) {
          if (::write(notices, &notice, sizeof notice) != sizeof notice) ::_exit(2);
        };
        const auto session = (*store)->open_session(vm_name(vm), "test");
        if (!session) ::_exit(3);
        EpochMaker maker(vm_name(vm), kPages);
        const Generation generation = (*session)->generation();
        const auto number = static_cast<std::uint32_t>(vm);
        say({Notice::Kind::session, number, generation.value, (*session)->next_epoch().value});
        for (bool full = true;; full = false) {
          const Epoch epoch = (*session)->next_epoch();
          const bool done = test::ship(**session, maker.make(generation, epoch, full,
                                                             writes_of(vm, generation, epoch)))
                                .has_value();
          say({done ? Notice::Kind::acknowledged : Notice::Kind::failed, number, generation.value,
               epoch.value});
        }
      });
    }
    std::this_thread::sleep_for(seconds(120));
    ::_exit(4);
  }

  void take(const Notice& notice) {
    Vm& vm = vms_.at(notice.vm);
    ASSERT_NE(notice.kind, Notice::Kind::failed) << vm_name(notice.vm) << ' ' << notice.epoch;
    if (notice.kind == Notice::Kind::session) {
      vm.begins[notice.generation] = notice.epoch;
    } else {
      vm.acknowledged.emplace_back(notice.epoch, SteadyClock::now());
      ++acknowledged_;
    }
  }

  /// Kills `after` its start, wherever that finds it, or `after` it has begun to acknowledge.
  enum class Counted { from_start, from_work };
  void run_and_kill(Counted counted, milliseconds after) {
    std::array<int, 2> ends{};
    ASSERT_EQ(::pipe2(ends.data(), O_CLOEXEC), 0);
    const UniqueFd read_end(ends[0]);
    UniqueFd write_end(ends[1]);
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) run_child(write_end.get());
    write_end.reset();
    auto until = SteadyClock::now() + after;
    const std::uint64_t working = acknowledged_ + kVms;
    bool counting = counted == Counted::from_start;
    bool killed = false;
    while (true) {
      look_for_spares();
      if (!counting) until = SteadyClock::now() + after;
      counting = counting || acknowledged_ >= working;
      const auto left = std::chrono::duration_cast<milliseconds>(until - SteadyClock::now());
      if (!killed && left.count() <= 0) {
        ASSERT_EQ(::kill(child, SIGKILL), 0);
        killed_at_ = SteadyClock::now();
        killed = true;
      }
      pollfd waiting{read_end.get(), POLLIN, 0};
      if (::poll(&waiting, 1, killed ? -1 : static_cast<int>(left.count()) + 1) == 0) continue;
      Notice notice;
      const ssize_t n = ::read(read_end.get(), &notice, sizeof notice);
      if (n <= 0) break;
      ASSERT_EQ(n, static_cast<ssize_t>(sizeof notice));
      ASSERT_NO_FATAL_FAILURE(take(notice));
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << status;
  }

  /// A spare file that was a segment before: it waits to be written anew. (A new file, too, has
  /// that name while it is made.)
  void look_for_spares() {
    std::error_code gone;  // the directory, or a file of it in the midst of this
    for (std::filesystem::directory_iterator file(temp_.file("ssd") + "/segments", gone), end;
         !gone && file != end; file.increment(gone)) {
      const std::string number = file->path().stem().string();
      if (file->path().extension() == ".seg") segments_.insert(number);
      if (file->path().extension() == ".spare" && segments_.contains(number)) {
        spares_.insert(number);
      }
    }
  }

  void check(const ShadowReader& reader) {
    for (std::size_t vm = 0; vm < kVms; ++vm) {
      const Vm& known = vms_[vm];
      if (known.acknowledged.empty()) continue;
      const auto info = reader.vm(vm_name(vm));
      ASSERT_TRUE(info) << info.error().message;
      std::map<std::uint64_t, const EpochInfo*> listed;
      for (const EpochInfo& epoch : info->epochs) listed[epoch.epoch.value] = &epoch;
      ASSERT_FALSE(listed.empty());
      EXPECT_GE(listed.rbegin()->first, known.acknowledged.back().first) << vm_name(vm);
      for (const auto& [epoch, at] : known.acknowledged) {
        if (killed_at_ - at < kSurelyKept) {
          EXPECT_TRUE(listed.contains(epoch)) << vm_name(vm) << ": epoch " << epoch << " is lost";
        }
      }
      ASSERT_NO_FATAL_FAILURE(compare(reader, vm, listed));
    }
  }

  /// The newest epoch, and some others, are what their VM was: the writes of its generation up to
  /// it.
  void compare(const ShadowReader& reader, std::size_t vm,
               const std::map<std::uint64_t, const EpochInfo*>& listed) {
    for (const auto& [generation, begin] : vms_[vm].begins) {
      EpochMaker maker(vm_name(vm), kPages);
      for (std::uint64_t epoch = begin; epoch <= listed.rbegin()->first; ++epoch) {
        const Generation of{generation};
        static_cast<void>(
            maker.make(of, Epoch{epoch}, epoch == begin, writes_of(vm, of, Epoch{epoch})));
        const auto found = listed.find(epoch);
        if (found == listed.end() || found->second->generation != of) continue;
        if (epoch != listed.rbegin()->first && random_() % 4 != 0) continue;
        const auto image = reader.open(vm_name(vm), Epoch{epoch});
        ASSERT_TRUE(image) << image.error().message;
        ASSERT_EQ(test::compare(**image, maker.image()), "") << vm_name(vm) << " epoch " << epoch;
        ++compared_;
      }
    }
  }

  struct Vm {
    std::map<std::uint64_t, std::uint64_t> begins;  ///< generation → its first epoch
    std::vector<std::pair<std::uint64_t, SteadyClock::time_point>> acknowledged;
  };
  test::TempDir temp_;
  const std::string dir_ = temp_.file("store");
  StoreOptions options_;
  std::vector<Vm> vms_{kVms};
  SteadyClock::time_point killed_at_;
  std::mt19937_64 random_{3};
  std::uint64_t acknowledged_ = 0;
  std::uint64_t compared_ = 0;
  std::set<std::string> segments_, spares_;  ///< by number, as seen
};

TEST_F(StoreKillTest, AcknowledgedEpochsSurviveEveryKill) {
  const std::uint64_t rounds = test::kill_rounds();
  for (std::uint64_t round = 0; round < rounds; ++round) {
    SCOPED_TRACE("round " + std::to_string(round));
    const auto counted = round % 4 < 2 ? Counted::from_start : Counted::from_work;
    ASSERT_NO_FATAL_FAILURE(run_and_kill(counted, milliseconds(100 + random_() % 500)));
    look_for_spares();
    const auto report = Verifier::run(dir_);
    ASSERT_TRUE(report) << report.error().message;
    ASSERT_TRUE(report->damage.empty()) << report->damage[0].text();
    const auto beside = Reader::open(dir_);
    ASSERT_TRUE(beside) << beside.error().message;
    ASSERT_NO_FATAL_FAILURE(check(**beside));
    if (round % 2 == 0) continue;  // the next child is the one to recover
    const auto store = open(false);
    ASSERT_TRUE(store) << store.error().message;
    ASSERT_TRUE((*store)->damage().empty()) << (*store)->damage()[0].text();
    ASSERT_NO_FATAL_FAILURE(check(*(*store)->reader()));
  }
  EXPECT_TRUE(rounds < 8 || !spares_.empty()) << "no file was there to be written anew";
  std::printf(
      "killed %llu times: %llu epochs acknowledged, %llu compared, %llu spare files seen\n",
      static_cast<unsigned long long>(rounds), static_cast<unsigned long long>(acknowledged_),
      static_cast<unsigned long long>(compared_), static_cast<unsigned long long>(spares_.size()));
}

}  // namespace
}  // namespace vmshadow::store::kill_test
