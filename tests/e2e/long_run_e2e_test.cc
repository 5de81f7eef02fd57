// A long run and going back into it: every epoch of one run commits, in order and without a stall,
// and a guest restored at any of them goes on exactly where it was cut.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <random>

#include "store/reader.h"
#include "support/prerequisite.h"
#include "support/replication_rig.h"
#include "support/thoroughness.h"

namespace vmshadow::test {
namespace {

using Json = nlohmann::json;
using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr seconds kBootWithin{120};
constexpr seconds kRunWithin{400};
// Of a shared machine: a stall would be without end.
constexpr std::chrono::duration<double> kGapMax{15};

struct LongRun {
  std::string name;
  GuestConfig config;
  std::uint64_t epochs;  ///< beside the full pass
  milliseconds interval;
  unsigned restores;
};

/// The phases between STOP and the last byte read, and what RESUME came after that, cover the
/// pause.
void expect_phases_cover_the_pause(const Json& line) {
  const auto number = [&](const char* key) { return line.at(key).get<double>(); };
  for (const char* phase : {"request_ms", "stop_ms", "ram_ms", "device_ms"}) {
    EXPECT_GT(number(phase), 0) << phase << " of " << line.dump();
  }
  if (line.at("pause_ms").is_null()) return;
  // QEMU's stamps are the wall clock's, ours the monotonic one's: which is which is found by
  // reading one behind the other, and other work may come between.
  constexpr double kClocksApartMs = 0.2;
  EXPECT_GE(number("cut_ms") + number("ram_ms") + number("device_ms") + number("resume_ms"),
            number("pause_ms") - kClocksApartMs)
      << line.dump();
}

/// What the sidecar and the store each say of the run; the longest time between two commits.
std::chrono::duration<double> expect_every_epoch(SidecarProgram& sidecar,
                                                 const std::string& store_directory,
                                                 std::uint64_t epochs) {
  std::uint64_t next = 0;
  for (const Json& line : sidecar.lines()) {
    if (line.value("event", "") != "epoch") continue;
    EXPECT_EQ(line.at("epoch").get<std::uint64_t>(), next++) << "an epoch is missing or doubled";
    if (!line.at("first_pass").get<bool>()) expect_phases_cover_the_pause(line);
  }
  EXPECT_EQ(next, epochs + 1);

  const auto reader = store::Reader::open(store_directory);
  if (!reader) {
    ADD_FAILURE() << reader.error().message;
    return {};
  }
  EXPECT_TRUE((*reader)->damage().empty());
  const auto vm = (*reader)->vm("vm1");
  if (!vm) {
    ADD_FAILURE() << vm.error().message;
    return {};
  }
  EXPECT_EQ(vm->epochs.size(), epochs + 1);
  std::chrono::nanoseconds longest{};
  for (std::size_t i = 0; i < vm->epochs.size(); ++i) {
    EXPECT_EQ(vm->epochs[i].epoch.value, i);
    EXPECT_EQ(vm->epochs[i].full, i == 0);
    if (i == 0) continue;
    longest = std::max(longest, std::chrono::nanoseconds(vm->epochs[i].committed_wall.ns -
                                                         vm->epochs[i - 1].committed_wall.ns));
  }
  return longest;
}

void restore_and_judge(const LongRun& run, const std::string& store_directory, QemuGuest& primary,
                       std::uint32_t seed) {
  std::mt19937 random(seed);
  std::uniform_int_distribution<std::uint64_t> any(0, run.epochs);
  std::string restored_at;
  for (unsigned i = 0; i < run.restores; ++i) {
    const std::uint64_t epoch = any(random);
    SCOPED_TRACE(fmt::format("epoch {} (VMSHADOW_TEST_SEED={})", epoch, seed));
    const auto restored =
        RestoredGuest::restore(store_directory, "vm1", std::to_string(epoch), primary);
    ASSERT_TRUE(restored) << restored.error().message;
    EXPECT_EQ((*restored)->epoch(), Epoch{epoch});
    const auto verdict = judge(store_directory, "vm1", primary.witness(), **restored);
    ASSERT_TRUE(verdict) << verdict.error().message << (*restored)->messages();
    EXPECT_TRUE(verdict->continues_exactly()) << verdict->text();
    restored_at += fmt::format(" {}", epoch);
  }
  testing::Test::RecordProperty("restored_at", restored_at);
  fmt::print("{}: {} restores, seed {}, at epochs{}\n", run.name, run.restores, seed, restored_at);
}

void run_long(const LongRun& run) {
  VMSHADOW_REQUIRE(guest_available(run.config));
  const auto primary = QemuGuest::start(run.config);
  ASSERT_TRUE(primary) << primary.error().message;
  const Status up = (*primary)->wait_for_reports(10, io::deadline_after(kBootWithin));
  ASSERT_TRUE(up) << up.error().message;
  const TempDir directory;
  auto store = StoreProgram::start(directory.file("store"));
  ASSERT_TRUE(store) << store.error().message;
  auto sidecar = SidecarProgram::start({"vm1",
                                        (*primary)->qmp_path(),
                                        store->address(),
                                        run.interval,
                                        {"--epochs", std::to_string(run.epochs)}});
  ASSERT_TRUE(sidecar) << sidecar.error().message;
  const auto ended = sidecar->process().wait(io::deadline_after(kRunWithin));
  ASSERT_TRUE(ended) << ended.error().message << sidecar->messages();
  EXPECT_TRUE(ended->success()) << ended->text() << ": " << sidecar->messages();

  const auto longest = expect_every_epoch(*sidecar, store->directory(), run.epochs);
  EXPECT_LT(longest, kGapMax);
  const auto summary = sidecar->summary();
  ASSERT_TRUE(summary);
  EXPECT_EQ(summary->at("epochs").get<std::uint64_t>(), run.epochs + 1);
  // An event that comes late on a busy machine leaves its epoch without a pause.
  EXPECT_GE(summary->at("pauses").get<std::uint64_t>(), run.epochs - run.epochs / 20);

  // Left in order: the guest runs on by itself, whole.
  const std::size_t lines = (*primary)->witness().lines().size();
  EXPECT_TRUE((*primary)->wait_for_reports(lines + 5, io::deadline_after(seconds(30))));
  const auto reports = (*primary)->reports();
  ASSERT_TRUE(reports) << reports.error().message;
  const WitnessRun witness = examine_run(*reports);
  EXPECT_TRUE(witness.same_run);
  EXPECT_TRUE(witness.in_sequence);
  EXPECT_EQ(witness.bad_pages, 0U);

  const double gap_ms = std::chrono::duration<double, std::milli>(longest).count();
  testing::Test::RecordProperty("epochs", std::to_string(run.epochs));
  testing::Test::RecordProperty("longest_commit_gap_ms", fmt::format("{:.0f}", gap_ms));
  for (const char* figure : {"pause_ms_p50", "pause_ms_p99", "captured_pages"}) {
    testing::Test::RecordProperty(figure, summary->at(figure).dump());
  }
  fmt::print(
      "{}: {} epochs, {} pages, pause p50 {:.2f} p99 {:.2f} ms, longest gap between commits "
      "{:.0f} ms, {} reports\n",
      run.name, run.epochs, summary->at("captured_pages").dump(),
      summary->at("pause_ms_p50").get<double>(), summary->at("pause_ms_p99").get<double>(), gap_ms,
      witness.reports);

  (*primary)->kill();
  restore_and_judge(run, store->directory(), **primary, draw_seed());
}

TEST(LongRunE2e, AThousandEpochsAndTwentyOfThemRestored) {
  GuestConfig config;
  config.kind = GuestKind::bare;
  run_long({"bare guest", config, 1000, milliseconds(20), 20});
}

TEST(LongRunE2e, ALinuxGuestUnderTcg) {
  GuestConfig config;
  config.kind = GuestKind::linux_kernel;
  config.accelerator = Accelerator::tcg;
  run_long({"Linux guest under TCG", config, 60, milliseconds(50), 5});
}

}  // namespace
}  // namespace vmshadow::test
