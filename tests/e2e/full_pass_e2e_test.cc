// Epochs without COLO: each a whole migration, after which the VM runs on. What is restored is
// exact, and whatever happens to the VM or the sidecar in a pass, the guest's life comes first.
#include <fcntl.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <array>
#include <random>
#include <set>
#include <sstream>

#include "capture/full_pass_source.h"
#include "capture/vm_events.h"
#include "io/socket.h"
#include "qmp/commands.h"
#include "store/reader.h"
#include "support/full_pass_rig.h"
#include "support/prerequisite.h"
#include "support/ram_image_sink.h"
#include "support/ram_oracle.h"
#include "support/scripted_monitor.h"

namespace vmshadow::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::HasSubstr;
using Json = nlohmann::json;

// ---- what is stored

void expect_epochs_restore(const GuestConfig& guest_config) {
  VMSHADOW_REQUIRE(guest_available(guest_config));
  const auto guest = must(QemuGuest::start(guest_config));
  must(guest->wait_for_reports(10, io::deadline_after(seconds(120))));
  TempDir folder;
  StoreProgram store = must(StoreProgram::start(folder.file("store")));
  SidecarConfig config{"vm1", guest->qmp_path(), store.address(), milliseconds(20), {}};
  config.extra_args = {"--source", "full-pass", "--epochs", "12"};
  SidecarProgram sidecar = must(SidecarProgram::start(config));
  EXPECT_EQ(must(sidecar.process().wait(io::deadline_after(seconds(120)))).text(), "exit code 0")
      << sidecar.messages();

  // One full epoch; each other adds to it what changed, and says what its pass took.
  {
    const auto reader = must(store::Reader::open(folder.file("store")));
    const VmInfo vm = must(reader->vm("vm1"));
    ASSERT_EQ(vm.epochs.size(), 13U);
    for (std::size_t i = 0; i < vm.epochs.size(); ++i) EXPECT_EQ(vm.epochs[i].full, i == 0) << i;
  }
  for (const Json& line : sidecar.lines()) {
    if (line.value("event", "") == "attached") {
      EXPECT_EQ(line.at("source"), "full-pass");
      EXPECT_THAT(line.at("why").get<std::string>(), HasSubstr("asked for; using full passes"));
    }
    if (line.value("event", "") != "epoch" || line.at("first_pass") == true) continue;
    EXPECT_GT(line.at("unchanged_pages"), line.at("pages").get<std::uint64_t>() / 2);
    EXPECT_GT(line.at("pass_ms"), line.at("pause_ms").get<double>());
    const double phases = line.at("ram_ms").get<double>() + line.at("device_ms").get<double>() +
                          line.at("resume_ms").get<double>();
    EXPECT_NEAR(phases, line.at("pause_ms").get<double>(), 1.0);
  }
  const Json summary = sidecar.summary().value();
  const Json cadence = summary.at("cadence");
  EXPECT_GE(cadence.at("holds_lag_ms"), cadence.at("pass_ms").get<double>());
  fmt::print(
      "first pass {} ms (paused {} ms), a pass {:.0f} ms, pause p50 {} p99 {} max {} ms, lag "
      "p50 {} p99 {} ms, holds {:.0f} ms\n",
      summary.at("full_pass_ms").dump(), summary.at("full_pass_pause_ms").dump(),
      cadence.at("pass_ms").get<double>(), summary.at("pause_ms_p50").dump(),
      summary.at("pause_ms_p99").dump(), summary.at("pause_ms_max").dump(),
      summary.at("lag_ms_p50").dump(), summary.at("lag_ms_p99").dump(),
      cadence.at("holds_lag_ms").get<double>());

  for (const char* epoch : {"0", "7", "latest"}) {
    SCOPED_TRACE(epoch);
    const auto restored = must(RestoredGuest::restore(folder.file("store"), "vm1", epoch, *guest));
    const WitnessVerdict verdict =
        must(judge(folder.file("store"), "vm1", guest->witness(), *restored, 10));
    EXPECT_TRUE(verdict.continues_exactly()) << verdict.text();
  }
}

TEST(FullPassE2e, EpochsOfABareGuestRestoreExactly) {
  GuestConfig config;
  config.witness = {"arena_mib=8", "pages=200"};
  expect_epochs_restore(config);
}

TEST(FullPassE2e, EpochsOfALinuxGuestRestoreExactly) {
  GuestConfig config;
  config.kind = GuestKind::linux_kernel;
  expect_epochs_restore(config);
}

// Pages are sent while the guest writes them, several times over: the newest must win.
TEST(FullPassE2e, EveryCutIsTheGuestsRam) {
  GuestConfig config;
  config.witness = busy_witness();
  VMSHADOW_REQUIRE(guest_available(config));
  const auto guest = must(QemuGuest::start(config));
  must(guest->wait_for_reports(5, io::deadline_after(seconds(60))));
  capture::VmEvents events;
  qmp::SessionOptions options;
  options.on_event = [&](const qmp::Event& event) { events.handle(event); };
  const auto session = must(qmp::Session::connect(guest->qmp_path(), options));
  const auto oracle = must(RamOracle::connect(guest->observer_qmp_path()));
  RamImageSink sink;
  capture::FullPassSource source(*session, events, system_clock());
  must(source.attach(sink, Epoch{0}));
  RamComparison compared;
  for (int i = 0; i < 15; ++i) {
    must(source.take_epoch_holding([&]() -> Status {
      VMSHADOW_ASSIGN(const auto found, oracle->compare(sink.block("pc.ram")));
      compared.add(found);
      return {};
    }));
  }
  EXPECT_EQ(compared.stale, 0U);
  EXPECT_EQ(compared.pages, 15 * (sink.block("pc.ram").size() / kPageBytes - 0x60));
  EXPECT_EQ(sink.newest(), Epoch{15});
  must(source.detach());
}

// ---- the VM and its operator

TEST(FullPassHazard, TheVmIsSuspended) {
  VMSHADOW_REQUIRE(guest_available({}));
  FaultRig rig;
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  SidecarProgram sidecar = protect_by_full_passes(rig, store);
  auto observer = rig.observer();
  for (int round = 0; round < 3; ++round) {
    SCOPED_TRACE(round);
    // At any moment of a pass; within its end QEMU overtakes it, or files it under another name. On
    // a busy host that end is long.
    wait_until([&] {
      must(qmp::stop(*observer));
      for (int look = 0; look < 10; ++look) {
        ::poll(nullptr, 0, 150);
        if (must(qmp::query_status(*observer)).running) return false;
      }
      return true;
    });
    wait_for_text(sidecar, "no epoch taken");
    const std::size_t reports = rig.guest().witness().lines().size();
    ::poll(nullptr, 0, 1000);
    EXPECT_EQ(rig.guest().witness().lines().size(), reports);
    EXPECT_FALSE(must(qmp::query_status(*observer)).running);
    must(qmp::cont(*observer));
    must(sidecar.wait_for_epochs(sidecar.epochs() + 3, io::deadline_after(kFaultPatience)));
  }
  observer.reset();
  EXPECT_EQ(sidecar.attachments(), 1U);
  EXPECT_EQ(must(sidecar.stop()).text(), "exit code 0") << sidecar.messages();
  rig.expect_runs_on(seconds(30));  // it was suspended meanwhile
  expect_settings_untouched(rig);
  rig.expect_nothing_lost(acknowledged_epochs(sidecar));
  rig.expect_exact();
}

TEST(FullPassHazard, TheGuestPanics) {
  VMSHADOW_REQUIRE(guest_available({}));
  FaultRig rig({"-device", "pvpanic", "-action", "panic=pause"},
               {"arena_mib=8", "pages=200", "panic_after=400"});
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  SidecarProgram sidecar = protect_by_full_passes(rig, store);
  wait_for_text(sidecar, "no epoch taken");
  ::poll(nullptr, 0, 1000);
  EXPECT_TRUE(rig.guest().process().running());
  EXPECT_FALSE(must(qmp::query_status(*rig.observer())).running);
  EXPECT_EQ(must(sidecar.stop()).text(), "exit code 0") << sidecar.messages();
  EXPECT_FALSE(must(qmp::query_status(*rig.observer())).running);
  rig.expect_nothing_lost(acknowledged_epochs(sidecar));
  rig.expect_exact("1");
}

TEST(FullPassHazard, TheGuestIsReset) {
  VMSHADOW_REQUIRE(guest_available({}));
  FaultRig rig({"-action", "reboot=reset"});
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  SidecarProgram sidecar = protect_by_full_passes(rig, store);
  must(rig.observer()->execute("system_reset"));
  must(sidecar.wait_for_epochs(sidecar.epochs() + 5, io::deadline_after(kFaultPatience)));
  EXPECT_EQ(sidecar.attachments(), 1U);
  EXPECT_EQ(must(sidecar.stop()).text(), "exit code 0") << sidecar.messages();
  EXPECT_EQ(run_state(*rig.observer()), "running");
  rig.expect_nothing_lost(acknowledged_epochs(sidecar));
}

TEST(FullPassHazard, QemuEndsOrIsKilled) {
  VMSHADOW_REQUIRE(guest_available({}));
  for (const bool killed : {false, true}) {
    SCOPED_TRACE(killed ? "killed" : "quit");
    FaultRig rig;
    StoreProgram store = must(StoreProgram::start(rig.store_directory()));
    SidecarProgram sidecar = protect_by_full_passes(rig, store, false);
    if (killed) {
      rig.guest().kill();
    } else {
      static_cast<void>(qmp::quit(*rig.observer()));
    }
    expect_end(sidecar, 3, {"the monitor of VM 'vm1' is gone", "the newest committed epoch is "});
    rig.expect_nothing_lost(acknowledged_epochs(sidecar));
    rig.expect_exact();
  }
}

/// Where an administrator's migration may begin: QEMU 7.2 ends if it takes one in the instant in
/// which another completes.
bool migrate_between_passes(qmp::Session& observer) {
  return run_state(observer) == "running" && !must(qmp::query_migrate(observer)).active() &&
         !must(qmp::query_migrate_capabilities(observer)).at("return-path") &&
         qmp::migrate(observer, "exec:cat > /dev/null");
}

// Between two passes QEMU takes it; the next pass waits until it is over.
TEST(FullPassHazard, SomebodyElseMigrates) {
  VMSHADOW_REQUIRE(guest_available({}));
  FaultRig rig;
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  SidecarConfig config = by_full_passes(rig, store.address());
  config.interval = milliseconds(1000);
  SidecarProgram sidecar = must(SidecarProgram::start(config));
  must(sidecar.wait_for_epochs(2, io::deadline_after(kFaultPatience)));
  auto observer = rig.observer();
  wait_until([&] { return !must(qmp::query_migrate(*observer)).active(); });
  must(qmp::migrate_set_parameters(*observer, {{"max-bandwidth", 4096}}));
  wait_until([&] { return migrate_between_passes(*observer); });
  wait_for_text(sidecar, "a migration of this VM that is not ours is under way");
  EXPECT_TRUE(must(qmp::query_migrate(*observer)).active());
  must(qmp::migrate_cancel(*observer));
  must(qmp::migrate_set_parameters(*observer, {{"max-bandwidth", 128 << 20}}));
  must(sidecar.wait_for_epochs(sidecar.epochs() + 2, io::deadline_after(kFaultPatience)));
  observer.reset();
  EXPECT_EQ(sidecar.attachments(), 1U);
  EXPECT_EQ(must(sidecar.stop()).text(), "exit code 0") << sidecar.messages();
  rig.expect_runs_on();
  rig.expect_nothing_lost(acknowledged_epochs(sidecar));
  rig.expect_exact();
}

// A migration of somebody else's that completes has moved the VM away: never resume it.
TEST(FullPassHazard, AVmThatWasMovedAwayIsLeftAlone) {
  VMSHADOW_REQUIRE(guest_available({}));
  FaultRig rig;
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  SidecarConfig config = by_full_passes(rig, store.address());
  config.interval = milliseconds(1000);
  config.once = false;
  SidecarProgram sidecar = must(SidecarProgram::start(config));
  must(sidecar.wait_for_epochs(2, io::deadline_after(kFaultPatience)));
  const auto observer = rig.observer();
  wait_until([&] { return migrate_between_passes(*observer); });
  // On a busy host the guest may write faster than `cat` reads.
  must(qmp::migrate_set_parameters(*observer, {{"downtime-limit", 20'000}}));
  wait_until([&] { return run_state(*observer) == "postmigrate"; });
  wait_for_text(sidecar, "the VM is not running (status postmigrate); no epoch taken");
  ::kill(must(sidecar.worker_pid()), SIGKILL);
  wait_for_text(sidecar, "cannot be protected: the VM is not running (status postmigrate)");
  EXPECT_EQ(run_state(*observer), "postmigrate");
  static_cast<void>(sidecar.stop());
  const Ran released = must(run_program(
      {program_path("vmshadow-sidecar"), "--release", "--qmp", rig.guest().qmp_path()}));
  EXPECT_THAT(released.out, HasSubstr("nothing was done"));
  EXPECT_EQ(run_state(*observer), "postmigrate");
}

// QEMU 7.2 ends if something writes to a disk between the end of a pass and `cont`.
TEST(FullPassHazard, ABlockJobIsWaitedFor) {
  VMSHADOW_REQUIRE(guest_available({}));
  FaultRig rig({"-blockdev", "driver=null-co,node-name=disk,size=1073741824,read-zeroes=on",
                "-device", "virtio-blk-pci,drive=disk", "-blockdev",
                "driver=null-co,node-name=copy,size=1073741824"});
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  auto observer = rig.observer();
  // So slow that it is there until it is cancelled.
  const Json slow_copy = {{"job-id", "copy"},
                          {"device", "disk"},
                          {"target", "copy"},
                          {"sync", "full"},
                          {"speed", 4 << 20}};
  must(observer->execute("blockdev-backup", slow_copy).map([](const Json&) {}));
  SidecarConfig config = by_full_passes(rig, store.address());
  config.extra_args.emplace_back("--ignore-disks");
  config.interval = milliseconds(1000);
  {
    SidecarProgram refused = must(SidecarProgram::start(config));
    expect_end(refused, 1, {"a block job of this VM exists (copy)", "no epoch taken until"});
  }
  const auto cancel = [&] {
    must(observer->execute("block-job-cancel", {{"device", "copy"}}).map([](const Json&) {}));
    wait_until([&] { return must(qmp::query_block_jobs(*observer)).empty(); });
  };
  cancel();
  SidecarProgram sidecar = must(SidecarProgram::start(config));
  must(sidecar.wait_for_epochs(3, io::deadline_after(kFaultPatience)));
  // Between two passes: QEMU drains its jobs when it stops the VM, and this one is slow.
  wait_until([&] { return !must(qmp::query_migrate(*observer)).active(); });
  must(observer->execute("blockdev-backup", slow_copy).map([](const Json&) {}));
  wait_for_text(sidecar, "a block job of this VM exists (copy)");
  const std::size_t before = sidecar.epochs();
  ::poll(nullptr, 0, 2500);
  EXPECT_LE(sidecar.epochs(), before + 1);
  EXPECT_EQ(run_state(*observer), "running");
  cancel();
  must(sidecar.wait_for_epochs(before + 3, io::deadline_after(kFaultPatience)));
  observer.reset();
  EXPECT_EQ(sidecar.attachments(), 1U);
  EXPECT_EQ(must(sidecar.stop()).text(), "exit code 0") << sidecar.messages();
  rig.expect_runs_on();
}

// ---- the sidecar

// Whatever reads its report may stop reading: that must hold neither the capture nor the guest.
TEST(FullPassHazard, TheReaderOfTheReportStalls) {
  VMSHADOW_REQUIRE(guest_available({}));
  FaultRig rig;
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  ProcessOptions options;
  options.argv = {program_path("vmshadow-sidecar"),
                  "--vm",
                  "vm1",
                  "--qmp",
                  rig.guest().qmp_path(),
                  "--store",
                  store.address(),
                  "--source",
                  "full-pass",
                  "--interval-ms",
                  "20",
                  "--json"};
  options.stdout_pipe = true;
  Process sidecar = must(Process::spawn(options));
  ::fcntl(sidecar.stdout_fd(), F_SETPIPE_SZ, 4096);  // some seven epochs' lines
  wait_until([&] { return stored_epochs(rig.store_directory(), "vm1").size() >= 40; });
  rig.expect_reports_go_on(seconds(5));
  must(sidecar.signal(SIGTERM));
  // And the reader that reads on has missed nothing.
  std::string text;
  std::array<char, 4096> piece;
  for (ssize_t got = 0; (got = ::read(sidecar.stdout_fd(), piece.data(), piece.size())) > 0;) {
    text.append(piece.data(), static_cast<std::size_t>(got));
  }
  EXPECT_EQ(must(sidecar.wait(io::deadline_after(kFaultPatience))).text(), "exit code 0");
  std::set<std::uint64_t> told;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    const Json json = Json::parse(line);
    EXPECT_NE(json.at("event"), "missed");
    if (json.at("event") == "epoch") told.insert(json.at("epoch").get<std::uint64_t>());
  }
  EXPECT_EQ(told, stored_epochs(rig.store_directory(), "vm1"));
  rig.expect_runs_on();
}

TEST(FullPassHazard, TheWorkerIsKilledAtAnyMoment) {
  VMSHADOW_REQUIRE(guest_available({}));
  FaultRig rig({}, busy_witness());
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  std::set<std::uint64_t> acknowledged;
  std::minstd_rand random(5);
  for (int round = 0; round < 10; ++round) {
    SCOPED_TRACE(round);
    SidecarProgram sidecar = protect_by_full_passes(rig, store);
    ::poll(nullptr, 0, static_cast<int>(random() % 150));
    ::kill(must(sidecar.worker_pid()), SIGKILL);
    EXPECT_EQ(must(sidecar.process().wait(io::deadline_after(kFaultPatience))).text(),
              "exit code 1");
    EXPECT_THAT(sidecar.messages(), HasSubstr("the worker was killed by signal 9; the VM"));
    rig.expect_runs_on();
    expect_settings_untouched(rig);
    acknowledged.merge(acknowledged_epochs(sidecar));
  }
  rig.expect_nothing_lost(acknowledged);
  rig.expect_exact();
}

/// Halts the worker in a pass's end, where the VM stands still in `state`.
bool halt_in_state(qmp::Session& observer, pid_t worker, const std::string& state) {
  const auto deadline = io::deadline_after(kFaultPatience);
  while (io::Deadline::clock::now() < deadline) {
    // Only then: a worker that is halted again and again would not come so far.
    if (run_state(observer) != state) continue;
    ::kill(worker, SIGSTOP);
    ::poll(nullptr, 0, 30);
    const auto still = qmp::query_status(observer, milliseconds(200));
    // Without an answer QEMU is stuck in sending to the worker, which does not read: worse still.
    if (!still && still.error().code == Errc::timed_out) return true;
    if (must(still).text == state) return true;
    ::kill(worker, SIGCONT);
  }
  return false;
}

// The worst moments: QEMU waits for our word, or has completed and waits for `cont`.
TEST(FullPassHazard, TheWorkerIsKilledWhileTheVmStandsStill) {
  VMSHADOW_REQUIRE(guest_available({}));
  FaultRig rig({}, busy_witness());
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  SidecarProgram sidecar = protect_by_full_passes(rig, store);
  const pid_t worker = must(sidecar.worker_pid());
  ASSERT_TRUE(halt_in_state(*rig.observer(), worker, "finish-migrate"));
  ::kill(worker, SIGKILL);
  expect_end(sidecar, 1, {"the worker was killed by signal 9; the VM was released, runs on"});
  rig.expect_runs_on();
  expect_settings_untouched(rig);
  rig.expect_nothing_lost(acknowledged_epochs(sidecar));
  rig.expect_exact();
}

// It is not dead, it only does nothing: the guard watches the clock.
TEST(FullPassHazard, TheWorkerIsStoppedWhileTheVmStandsStill) {
  VMSHADOW_REQUIRE(guest_available({}));
  FaultRig rig({}, busy_witness());
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  SidecarConfig config = by_full_passes(rig, store.address());
  config.pause_deadline = milliseconds(300);
  SidecarProgram sidecar = must(SidecarProgram::start(config));
  must(sidecar.wait_for_epochs(2, io::deadline_after(kFaultPatience)));
  ASSERT_TRUE(halt_in_state(*rig.observer(), must(sidecar.worker_pid()), "finish-migrate"));
  expect_end(sidecar, 1, {"for over 300 ms and was killed; the VM was released, runs on"});
  rig.expect_runs_on();
  expect_settings_untouched(rig);
}

/// Worker and guard die together where QEMU has completed a pass and nobody resumed the VM.
void leave_in_postmigrate(FaultRig& rig) {
  const auto session = rig.observer();
  qmp::Session& observer = *session;
  // The very state, made by the very steps: a sample would meet it once in thousands of passes.
  must(qmp::migrate_set_capabilities(observer, {{"return-path", true}, {"events", true}}));
  must(qmp::migrate_set_parameters(
      observer, {{"max-bandwidth", std::uint64_t{1} << 50}, {"downtime-limit", 50}}));
  auto pair = must(io::socket_pair());
  must(qmp::getfd(observer, "left", pair.second.get()));
  pair.second.reset();
  must(qmp::migrate(observer, "fd:left"));
  std::vector<std::byte> buffer(1 << 20);
  bool told = false;
  wait_until([&] {
    while (
        io::read_some(pair.first.get(), buffer, io::deadline_after(milliseconds(100))).value_or(0) >
        0) {
    }
    if (!told && run_state(observer) == "finish-migrate") {
      const std::array<std::byte, 8> shut{std::byte{0}, std::byte{1}, std::byte{0}, std::byte{4}};
      must(io::write_all(pair.first.get(), shut, io::deadline_after(seconds(1))));
      told = true;
    }
    return run_state(observer) == "postmigrate";
  });
}

TEST(FullPassHazard, BothDiedInPostmigrateThenRelease) {
  VMSHADOW_REQUIRE(guest_available({}));
  FaultRig rig;
  leave_in_postmigrate(rig);
  const Ran released = must(run_program(
      {program_path("vmshadow-sidecar"), "--release", "--qmp", rig.guest().qmp_path()}));
  EXPECT_EQ(released.status.text(), "exit code 0") << released.err;
  EXPECT_THAT(released.out,
              HasSubstr("the VM had been left standing still, status postmigrate (migration status "
                        "completed) by a vmshadow-sidecar that was killed together with its guard: "
                        "it was released, it runs"));
  rig.expect_runs_on(seconds(10));
  expect_settings_untouched(rig);
}

TEST(FullPassHazard, BothDiedInPostmigrateThenTheNextStartReleasesFirst) {
  VMSHADOW_REQUIRE(guest_available({}));
  FaultRig rig;
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  leave_in_postmigrate(rig);
  SidecarProgram sidecar = protect_by_full_passes(rig, store);
  EXPECT_THAT(sidecar.messages(), HasSubstr("it was released, it runs"));
  EXPECT_EQ(must(sidecar.stop()).text(), "exit code 0") << sidecar.messages();
  rig.expect_runs_on(seconds(10));
  expect_settings_untouched(rig);
  rig.expect_exact();
}

// ---- which source, and why

/// A QEMU without the means of COLO, as far as questions go.
Json answer_without_colo(const Json& command) {
  const std::string name = command.value("execute", "");
  const auto returns = [](Json value) { return Json{{"return", std::move(value)}}; };
  if (name == "query-commands") return returns({{{"name", "migrate"}}});
  if (name == "query-migrate-capabilities") {
    return returns({{{"capability", "return-path"}, {"state", false}},
                    {{"capability", "events"}, {"state", false}}});
  }
  if (name == "query-migrate-parameters") return returns({{"max-bandwidth", 1}});
  if (name == "query-status") return returns({{"status", "running"}, {"running", true}});
  if (name == "qom-get") return returns(false);
  if (name == "qom-list" || name == "query-block") return returns(Json::array());
  if (name == "query-migrate") return returns(Json::object());
  return {{"error", {{"class", "CommandNotFound"}, {"desc", name + " has not been found"}}}};
}

TEST(FullPassChoice, IsMadeWhereColoIsBrokenOrAbsent) {
  for (const auto& [version, why] : {std::pair{"10.0.2", "QEMU 10.0.2 has a broken COLO"},
                                     std::pair{"9.2.4", "QEMU 9.2.4 was built without COLO"}}) {
    SCOPED_TRACE(version);
    TempDir folder;
    ScriptedMonitor monitor(folder.file("qmp"), version, answer_without_colo);
    SidecarConfig config{"vm1", folder.file("qmp"), "127.0.0.1:1", milliseconds(20), {}};
    SidecarProgram sidecar = must(SidecarProgram::start(config));
    static_cast<void>(must(sidecar.process().wait(io::deadline_after(kFaultPatience))));
    EXPECT_THAT(sidecar.messages(), HasSubstr(why));
    EXPECT_THAT(sidecar.messages(), HasSubstr("using full passes: each epoch reads all RAM"));
    EXPECT_THAT(sidecar.messages(), HasSubstr("no store answers"));
  }
}

}  // namespace
}  // namespace vmshadow::test
