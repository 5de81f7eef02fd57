// The source of full passes against a VM that is made up: what an epoch is, what ends a pass, and
// above all what becomes of the VM and of the guard's flags between the word that lets QEMU
// complete a migration and `cont`.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>

#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "capture/first_pass_limit.h"
#include "capture/full_pass_source.h"
#include "capture/vm_events.h"
#include "support/ram_image_sink.h"
#include "support/scripted_vm.h"
#include "support/temp_dir.h"

namespace vmshadow::capture {
namespace {

using std::chrono::milliseconds;
using test::ScriptedVm;
using testing::HasSubstr;
using testing::IsEmpty;
using Pass = ScriptedVm::Pass;

/// What a VM that is made up may take; what is scripted to stall is waited for so long.
constexpr milliseconds kStall{1000};

/// Also counts what it is told, and in which order.
class WatchedSink final : public PageSink {
 public:
  void begin_epoch(const EpochBegin& begin) override {
    begun.push_back(begin.epoch.value);
    full.push_back(begin.full);
    guest_runs = begin.guest_runs;
    image.begin_epoch(begin);
  }
  void add(PageBatch batch) override { image.add(std::move(batch)); }
  void end_epoch(EpochEnd end) override {
    ended.push_back(end.epoch.value);
    device_state = end.device_state;
    image.end_epoch(std::move(end));
  }
  void abandon_epoch() override { image.abandon_epoch(); }
  [[nodiscard]] Result<bool> wait_for_room(std::chrono::nanoseconds) override { return true; }

  test::RamImageSink image;
  std::vector<std::uint64_t> begun, ended;
  std::vector<bool> full;
  bool guest_runs = false;
  std::vector<std::byte> device_state;
};

class FullPassSourceTest : public testing::Test {
 protected:
  FullPassSourceTest() : vm_(folder_.file("qmp")) {
    qmp::SessionOptions options;
    options.on_event = [this](const qmp::Event& event) { events_.handle(event); };
    auto session = qmp::Session::connect(folder_.file("qmp"), options);
    if (!session) throw std::runtime_error(session.error().message);
    session_ = *std::move(session);
    FullPassOptions how;
    how.stall = kStall;
    how.on_pass_begin = [this](const MigrationSettings&) { ++begun_; };
    how.on_pass_end = [this] { ++ended_; };
    how.cancelled = [this] { return told_to_stop_.load(); };
    how.on_progress = [this](std::uint64_t) { return progress_ ? progress_() : Status{}; };
    how.stopped_since_ns = &stopped_since_;
    how.resume_owed = &resume_owed_;
    source_ = std::make_unique<FullPassSource>(*session_, events_, system_clock(), how);
  }

  void attach() {
    const auto first = source_->attach(sink_, Epoch{5});
    ASSERT_TRUE(first) << first.error().message;
  }
  /// After any end of a pass with a monitor that answers: nothing of ours is left, nothing owed.
  void expect_left() {
    EXPECT_EQ(stopped_since_, 0);
    EXPECT_FALSE(resume_owed_);
    EXPECT_EQ(begun_, ended_);
    EXPECT_EQ(vm_.parameters().at("max-bandwidth"), 1000);
    EXPECT_EQ(vm_.parameters().at("downtime-limit"), 77);
    EXPECT_EQ(
        vm_.capabilities(),
        (std::map<std::string, bool>{{"return-path", false}, {"events", false}, {"xbzrle", true}}));
  }
  /// That the next epoch fails so; the VM is seen to.
  void expect_failure(Pass pass, Errc code, const std::string& words) {
    vm_.script(std::move(pass));
    const auto stats = source_->take_epoch();
    ASSERT_FALSE(stats);
    EXPECT_EQ(stats.error().code, code) << stats.error().message;
    EXPECT_THAT(stats.error().message, HasSubstr(words));
  }
  static Pass ends(Pass::End end) {
    Pass pass;
    pass.end = end;
    return pass;
  }
  [[nodiscard]] int fill_of_page(std::uint64_t page) {
    return static_cast<int>(sink_.image.block("pc.ram")[page * kPageBytes]);
  }

  test::TempDir folder_;
  std::atomic<bool> told_to_stop_{false};
  std::function<Status()> progress_;
  std::atomic<std::int64_t> stopped_since_{0};
  std::atomic<bool> resume_owed_{false};
  int begun_ = 0, ended_ = 0;
  ScriptedVm vm_;
  VmEvents events_;
  std::unique_ptr<qmp::Session> session_;
  WatchedSink sink_;
  std::unique_ptr<FullPassSource> source_;
};

TEST_F(FullPassSourceTest, TheFirstEpochIsFullAndTheOthersAddToIt) {
  Pass second;
  second.fill = 9;
  vm_.script({});
  vm_.script(second);
  attach();
  expect_left();
  EXPECT_EQ(vm_.run_state(), "running");
  EXPECT_EQ(fill_of_page(15), 1);
  const auto stats = source_->take_epoch();
  ASSERT_TRUE(stats) << stats.error().message;
  EXPECT_EQ(stats->epoch, Epoch{6});
  EXPECT_EQ(stats->pages, 16U);
  EXPECT_TRUE(stats->pause);
  ASSERT_TRUE(stats->pass);
  EXPECT_GE(*stats->pass, stats->ram + stats->device);
  EXPECT_EQ(fill_of_page(0), 9);
  EXPECT_THAT(sink_.begun, testing::ElementsAre(5, 6));
  EXPECT_THAT(sink_.ended, testing::ElementsAre(5, 6));
  EXPECT_THAT(sink_.full, testing::ElementsAre(true, false));
  EXPECT_TRUE(sink_.guest_runs);
  EXPECT_EQ(sink_.device_state.back(), std::byte{0});
  EXPECT_EQ(vm_.heard("cont"), 2U);
  expect_left();
}

TEST_F(FullPassSourceTest, TheGuardKnowsThatTheVmStandsStillAndHangsOnUs) {
  vm_.script({});
  attach();
  vm_.script({});
  const auto stats = source_->take_epoch_holding([this]() -> Status {
    EXPECT_NE(stopped_since_, 0);
    EXPECT_FALSE(resume_owed_) << "QEMU still resumes it by itself";
    EXPECT_EQ(vm_.run_state(), "finish-migrate");
    return {};
  });
  ASSERT_TRUE(stats) << stats.error().message;
  expect_left();
}

// What holds the capture thread (here it waits for just this) holds nothing of the guard's clock.
TEST_F(FullPassSourceTest, TheGuardsClockRunsFromTheStopWhateverHoldsTheCapture) {
  vm_.script({});
  attach();
  Pass pass;
  pass.stops_when_let = true;
  vm_.script(pass);
  std::int64_t let_at = 0;
  std::int64_t marked = 0;
  progress_ = [&]() -> Status {
    if (let_at != 0) return {};
    let_at = system_clock().monotonic().ns;
    vm_.let_it_stop();
    const auto deadline = io::deadline_after(std::chrono::seconds(10));
    while (marked == 0 && io::Deadline::clock::now() < deadline) marked = stopped_since_;
    return {};
  };
  const auto stats = source_->take_epoch();
  ASSERT_TRUE(stats) << stats.error().message;
  EXPECT_GE(marked, let_at);
  EXPECT_LE(marked, system_clock().monotonic().ns);
  expect_left();
}

// A first pass may end in a longer pause than the guard allows: what QEMU takes by its own
// reckoning does not count.
TEST_F(FullPassSourceTest, TheFirstPassHasItsOwnTimeToSend) {
  Pass pass;
  pass.stops_when_let = true;
  vm_.script(pass);
  std::int64_t let_at = 0;
  std::int64_t marked = 0;
  progress_ = [&]() -> Status {
    if (let_at != 0) return {};
    let_at = system_clock().monotonic().ns;
    vm_.let_it_stop();
    const auto deadline = io::deadline_after(std::chrono::seconds(10));
    while (marked == 0 && io::Deadline::clock::now() < deadline) marked = stopped_since_;
    return {};
  };
  attach();
  EXPECT_GE(marked, let_at + std::chrono::nanoseconds(FirstPassLimit::kInitial).count());
  expect_left();
}

TEST_F(FullPassSourceTest, AQuestionUnderWayDoesNotKeepTheVmStandingStill) {
  vm_.script({});
  attach();
  Pass pass;
  pass.look_waits_for_word = true;
  vm_.script(pass);
  const auto stats = source_->take_epoch();
  ASSERT_TRUE(stats) << stats.error().message;
  EXPECT_FALSE(vm_.look_waited_in_vain());
  expect_left();
}

// ---- between our word and `cont`

// From `cont` on anybody's migration may begin. (A VM does not wait long for it, so not each time.)
TEST_F(FullPassSourceTest, TheStreamIsClosedBeforeTheVmRuns) {
  vm_.script({});
  attach();
  bool closed = vm_.stream_was_closed_at_cont();
  for (int pass = 0; pass < 10 && !closed; ++pass) {
    vm_.script({});
    ASSERT_TRUE(source_->take_epoch());
    closed = vm_.stream_was_closed_at_cont();
  }
  EXPECT_TRUE(closed);
  expect_left();
}

TEST_F(FullPassSourceTest, ContIsTriedAgainUntilQemuTakesIt) {
  Pass pass;
  pass.cont_refusals = 3;
  vm_.script(pass);
  attach();
  EXPECT_EQ(vm_.heard("cont"), 4U);
  EXPECT_EQ(vm_.run_state(), "running");
  expect_left();
}

TEST_F(FullPassSourceTest, AVmThatQemuDoesNotLetUsResumeStaysOwed) {
  vm_.script({});
  attach();
  Pass pass;
  pass.cont_refusals = 1'000'000;
  expect_failure(pass, Errc::invalid_argument, "Migration is not finalized yet");
  // The guard sees both and takes over at the deadline.
  EXPECT_TRUE(resume_owed_);
  EXPECT_NE(stopped_since_, 0);
  EXPECT_EQ(begun_, ended_ + 1);
  // Unless it works at last.
  vm_.set_cont_refusals(0);
  const auto left = source_->detach();
  EXPECT_TRUE(left) << left.error().message;
  EXPECT_EQ(vm_.run_state(), "running");
  expect_left();
}

TEST_F(FullPassSourceTest, AMigrationThatDoesNotCompleteIsGivenUp) {
  vm_.script({});
  attach();
  expect_failure(ends(Pass::End::never_completes), Errc::timed_out,
                 "QEMU does not complete the migration");
  EXPECT_EQ(vm_.run_state(), "running");
  EXPECT_THAT(sink_.ended, testing::ElementsAre(5));
  expect_left();
}

// All of it has been read, and the VM goes on from there: it is an epoch like any other.
TEST_F(FullPassSourceTest, AMigrationThatFailsWhenToldToCompleteIsAnEpoch) {
  vm_.script({});
  attach();
  vm_.script(ends(Pass::End::fails_when_told));
  const auto stats = source_->take_epoch();
  ASSERT_TRUE(stats) << stats.error().message;
  EXPECT_EQ(vm_.run_state(), "running");
  expect_left();
}

TEST_F(FullPassSourceTest, AMonitorThatIsLostThereLeavesTheVmOwed) {
  vm_.script({});
  attach();
  vm_.script(ends(Pass::End::dies_when_told));
  const auto stats = source_->take_epoch();
  ASSERT_FALSE(stats);
  EXPECT_TRUE(session_->closed());
  EXPECT_TRUE(resume_owed_);
  EXPECT_NE(stopped_since_, 0);
  EXPECT_EQ(begun_, ended_ + 1);
  EXPECT_THAT(sink_.ended, testing::ElementsAre(5));
}

// A `migrate` before QEMU has let go of the last one's stream would wedge it.
TEST_F(FullPassSourceTest, AStreamThatQemuDoesNotCloseEndsTheProtection) {
  vm_.script({});
  attach();
  Pass pass;
  pass.closes = false;
  expect_failure(pass, Errc::timed_out, "QEMU does not close its migration stream");
  EXPECT_EQ(vm_.run_state(), "running");
  EXPECT_FALSE(resume_owed_);
  EXPECT_EQ(stopped_since_, 0);
  EXPECT_TRUE(source_->detach());
  expect_left();
}

// ---- what ends a pass before

TEST_F(FullPassSourceTest, APassThatBreaksOffLeavesTheVmRunning) {
  for (const auto& [end, code, words] :
       {std::tuple{Pass::End::closes_in_ram, Errc::closed, "QEMU closed its migration stream"},
        std::tuple{Pass::End::no_end_of_ram, Errc::closed, "before its RAM was complete"},
        std::tuple{Pass::End::stalls_in_tail, Errc::timed_out, "QEMU sent nothing for 1000 ms"}}) {
    SCOPED_TRACE(words);
    FullPassOptions how;
    how.stall = kStall;
    FullPassSource again(*session_, events_, system_clock(), how);
    WatchedSink sink;
    vm_.script({});
    ASSERT_TRUE(again.attach(sink, Epoch{0}));
    vm_.script(ends(end));
    const auto stats = again.take_epoch();
    ASSERT_FALSE(stats);
    EXPECT_EQ(stats.error().code, code) << stats.error().message;
    EXPECT_THAT(stats.error().message, HasSubstr(words));
    EXPECT_THAT(sink.ended, testing::ElementsAre(0));
    EXPECT_EQ(vm_.run_state(), "running");
    expect_left();
  }
}

TEST_F(FullPassSourceTest, AMigrationThatQemuRefusesChangesNothing) {
  vm_.script({});
  attach();
  Pass pass;
  pass.refusal = "The device does not support migration";
  expect_failure(pass, Errc::invalid_argument, "The device does not support migration");
  EXPECT_EQ(vm_.run_state(), "running");
  expect_left();
}

// It would have gone on with our return path, and stood still at its end.
TEST_F(FullPassSourceTest, AMigrationThatBeganWithOurSettingsIsCancelled) {
  vm_.script({});
  attach();
  Pass pass;
  pass.refusal = "There's a migration process in progress";
  pass.intruder = true;
  expect_failure(pass, Errc::cancelled, "is not ours began in the moment");
  EXPECT_EQ(vm_.heard("migrate_cancel"), 1U);
  EXPECT_EQ(vm_.run_state(), "running");
  expect_left();
  const auto stats = source_->take_epoch();
  ASSERT_TRUE(stats) << stats.error().message;
  EXPECT_EQ(stats->epoch, Epoch{6});
  EXPECT_EQ(vm_.heard("migrate_cancel"), 1U);
}

// It began before our capabilities were set: with its own it goes on.
TEST_F(FullPassSourceTest, AMigrationThatBeganJustBeforeIsLeftAlone) {
  vm_.script({});
  attach();
  // Over by the time that one asks.
  Pass pass;
  pass.refusal = "There's a migration process in progress";
  expect_failure(pass, Errc::cancelled, "is not ours began in the moment");
  expect_left();
  const std::size_t asked = vm_.heard("migrate");
  vm_.set_migration_at_parameters("active");
  const auto stats = source_->take_epoch();
  ASSERT_FALSE(stats);
  EXPECT_EQ(stats.error().code, Errc::cancelled) << stats.error().message;
  EXPECT_EQ(vm_.heard("migrate"), asked);
  EXPECT_EQ(vm_.heard("migrate_cancel"), 0U);
  expect_left();
  vm_.set_migration("completed");
  EXPECT_TRUE(source_->take_epoch());
}

TEST_F(FullPassSourceTest, AnotherLayoutOfMemoryEndsTheSession) {
  vm_.script({});
  attach();
  Pass pass;
  pass.blocks.emplace_back("mem1", kPageBytes);
  expect_failure(pass, Errc::protocol, "the VM's memory is laid out anew");
  expect_left();
}

// What such a pass has brought stays in the open epoch: the next pass sends all of it again.
TEST_F(FullPassSourceTest, AVmThatIsSuspendedInMidPassIsNotResumed) {
  vm_.script({});
  attach();
  Pass pass;
  pass.stopped_in_ram = "paused";
  pass.fill = 7;
  expect_failure(pass, Errc::cancelled, "the VM is not running (status paused)");
  EXPECT_EQ(vm_.run_state(), "paused");
  EXPECT_EQ(vm_.heard("cont"), 1U);  // the first epoch's
  expect_left();
  expect_failure({}, Errc::cancelled, "the VM is not running (status paused)");
  vm_.set_run_state("running");
  const auto stats = source_->take_epoch();  // by the script that the gate has left
  ASSERT_TRUE(stats) << stats.error().message;
  EXPECT_EQ(stats->epoch, Epoch{6});
  EXPECT_THAT(sink_.begun, testing::ElementsAre(5, 6));
  EXPECT_THAT(sink_.ended, testing::ElementsAre(5, 6));
  EXPECT_EQ(fill_of_page(3), 1);
}

TEST_F(FullPassSourceTest, AVmThatWasSuspendedJustBeforeTheEndIsNoEpoch) {
  vm_.script({});
  attach();
  Pass pass;
  pass.state_at_cut = "paused";
  expect_failure(pass, Errc::cancelled, "the VM is not running (status paused)");
  EXPECT_EQ(vm_.heard("cont"), 1U);
  EXPECT_THAT(sink_.ended, testing::ElementsAre(5));
  expect_left();
}

TEST_F(FullPassSourceTest, SomebodyElsesMigrationIsWaitedFor) {
  vm_.script({});
  attach();
  vm_.set_migration("active");
  const auto stats = source_->take_epoch();
  ASSERT_FALSE(stats);
  EXPECT_EQ(stats.error().code, Errc::cancelled);
  EXPECT_THAT(stats.error().message, HasSubstr("a migration of this VM that is not ours"));
  EXPECT_EQ(vm_.heard("migrate"), 1U);
  vm_.set_migration("completed");
  EXPECT_TRUE(source_->take_epoch());
}

// QEMU 7.2 ends if something writes to a disk between the end of a pass and `cont`.
TEST_F(FullPassSourceTest, ABlockJobIsWaitedFor) {
  vm_.set_block_jobs({"drive0", "drive1"});
  const auto first = source_->attach(sink_, Epoch{5});
  ASSERT_FALSE(first);
  EXPECT_EQ(first.error().code, Errc::invalid_argument);
  EXPECT_THAT(first.error().message, HasSubstr("a block job of this VM exists (drive0, drive1)"));
  EXPECT_EQ(vm_.heard("migrate"), 0U);

  vm_.set_block_jobs({});
  attach();
  vm_.set_block_jobs({"drive0"});
  expect_failure({}, Errc::cancelled, "no epoch taken until it is over");
  EXPECT_EQ(vm_.heard("migrate"), 1U);
  vm_.set_block_jobs({});
  EXPECT_TRUE(source_->take_epoch());
  expect_left();
}

TEST_F(FullPassSourceTest, ABlockJobThatBeginsInMidPassEndsThePass) {
  vm_.script({});
  attach();
  progress_ = [this]() -> Status {
    vm_.set_block_jobs({"drive0"});
    return {};
  };
  expect_failure(ends(Pass::End::goes_on), Errc::cancelled,
                 "a block job of this VM exists (drive0)");
  EXPECT_EQ(vm_.run_state(), "running");
  expect_left();
  progress_ = nullptr;
  vm_.set_block_jobs({});
  const auto stats = source_->take_epoch();
  ASSERT_TRUE(stats) << stats.error().message;
  EXPECT_THAT(sink_.ended, testing::ElementsAre(5, 6));
}

TEST_F(FullPassSourceTest, AMonitorWithoutDescriptorsIsSaidOnce) {
  std::ostringstream log;
  const auto before = spdlog::default_logger();
  spdlog::set_default_logger(std::make_shared<spdlog::logger>(
      "test", std::make_shared<spdlog::sinks::ostream_sink_mt>(log)));
  attach();
  EXPECT_TRUE(source_->take_epoch());
  EXPECT_TRUE(source_->take_epoch());
  spdlog::set_default_logger(before);
  const std::string words = "this monitor takes no descriptors";
  const std::size_t first = log.str().find(words);
  ASSERT_NE(first, std::string::npos);
  EXPECT_EQ(log.str().find(words, first + 1), std::string::npos) << log.str();
}

TEST_F(FullPassSourceTest, ToldToStopItGivesThePassUp) {
  vm_.script({});
  attach();
  vm_.script(ends(Pass::End::goes_on));
  told_to_stop_ = true;
  const auto stats = source_->take_epoch();
  ASSERT_FALSE(stats);
  EXPECT_EQ(stats.error().code, Errc::cancelled);
  EXPECT_EQ(vm_.run_state(), "running");
  expect_left();
}

TEST_F(FullPassSourceTest, AFailureBehindItEndsThePass) {
  vm_.script({});
  attach();
  vm_.script(ends(Pass::End::goes_on));
  progress_ = [] { return fail(Errc::closed, "the store is gone"); };
  const auto stats = source_->take_epoch();
  ASSERT_FALSE(stats);
  EXPECT_EQ(stats.error().message, "the store is gone");
  EXPECT_EQ(vm_.run_state(), "running");
  expect_left();
}

TEST_F(FullPassSourceTest, WithoutItsEventsAPauseIsNotKnown) {
  vm_.script({});
  attach();
  Pass pass;
  pass.events = false;
  vm_.script(pass);
  const auto stats = source_->take_epoch();
  ASSERT_TRUE(stats) << stats.error().message;
  EXPECT_FALSE(stats->pause);
  expect_left();
}

TEST_F(FullPassSourceTest, AFirstPassOfASuspendedVmIsAnError) {
  vm_.set_run_state("paused");
  const auto first = source_->attach(sink_, Epoch{0});
  ASSERT_FALSE(first);
  EXPECT_EQ(first.error().code, Errc::invalid_argument);
  EXPECT_THAT(sink_.begun, IsEmpty());
  EXPECT_EQ(vm_.heard("migrate"), 0U);
}

}  // namespace
}  // namespace vmshadow::capture
