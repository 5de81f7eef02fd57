// What can happen to a sidecar: worker, guard or both killed, at any moment; a second one for the
// same VM. Whatever it is, the guest's life comes first.
#include <nlohmann/json.hpp>
#include <poll.h>
#include <signal.h>

#include <random>

#include "qmp/commands.h"
#include "support/fault_rig.h"
#include "support/prerequisite.h"

namespace vmshadow::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::HasSubstr;

constexpr int kSidecarKillRounds = 10;
constexpr int kSamplesMax = 2000;
const std::vector<std::string> kWorkerKilled{"the worker was killed by signal 9",
                                             "the VM was released, runs on",
                                             "no longer protected: start the sidecar again"};

/// A guest whose checkpoints take long, so that a moment at random is often inside one.
std::vector<std::string> busy_witness() {
  return {"arena_mib=8", "pages=all", "tick_us=5000", "fill_words=16"};
}

/// Halts the worker where the VM stands still for it: between its REPLY and its acknowledgement.
/// False if no sample met that moment.
bool halt_at_the_cut(qmp::Session& observer, pid_t worker) {
  for (int sample = 0; sample < kSamplesMax; ++sample) {
    ::kill(worker, SIGSTOP);
    if (must(qmp::query_status(observer)).text == "colo") {
      // It stays so: QEMU waits for us, not for its own sends.
      ::poll(nullptr, 0, 100);
      if (must(qmp::query_status(observer)).text == "colo") return true;
    }
    ::kill(worker, SIGCONT);
    ::poll(nullptr, 0, sample % 5);
  }
  return false;
}

TEST(SidecarFaults, WorkerKilledAtAnyMomentReleasesTheVm) {
  VMSHADOW_REQUIRE(guest_available({}));
  FaultRig rig({}, busy_witness());
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  std::set<std::uint64_t> acknowledged;
  std::minstd_rand random(2);
  for (int round = 0; round < kSidecarKillRounds; ++round) {
    SCOPED_TRACE(round);
    SidecarProgram sidecar = rig.protect(store.address(), 2, milliseconds(5));
    ::poll(nullptr, 0, static_cast<int>(random() % 60));
    ::kill(must(sidecar.worker_pid()), SIGKILL);
    expect_end(sidecar, 1, kWorkerKilled);
    rig.expect_runs_on();
    acknowledged.merge(acknowledged_epochs(sidecar));
  }
  rig.expect_nothing_lost(acknowledged);
  rig.expect_exact();
  rig.expect_protectable_again(store);
}

TEST(SidecarFaults, WorkerKilledBetweenEpochsReleasesTheVm) {
  VMSHADOW_REQUIRE(guest_available({}));
  FaultRig rig;
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  SidecarProgram sidecar = rig.protect(store.address(), 1, std::chrono::hours(1));
  ::kill(must(sidecar.worker_pid()), SIGKILL);
  expect_end(sidecar, 1, kWorkerKilled);
  rig.expect_runs_on();
  rig.expect_nothing_lost(acknowledged_epochs(sidecar));
}

TEST(SidecarFaults, WorkerKilledInTheFullPassReleasesTheVm) {
  VMSHADOW_REQUIRE(guest_available({}));
  FaultRig rig;
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  std::minstd_rand random(3);
  for (int round = 0; round < 5; ++round) {
    SidecarProgram sidecar = must(SidecarProgram::start(rig.config(store.address())));
    const auto observer = rig.observer();
    wait_until([&] { return must(qmp::query_migrate(*observer)).active(); });
    ::poll(nullptr, 0, static_cast<int>(random() % 30));
    ::kill(must(sidecar.worker_pid()), SIGKILL);
    expect_end(sidecar, 1, kWorkerKilled);
  }
  rig.expect_runs_on();
  rig.expect_protectable_again(store);
}

TEST(SidecarFaults, WorkerKilledWhileTheVmStandsAtTheCutReleasesTheVm) {
  VMSHADOW_REQUIRE(guest_available({}));
  FaultRig rig({}, busy_witness());
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  SidecarProgram sidecar = rig.protect(store.address(), 2, milliseconds(5));
  const pid_t worker = must(sidecar.worker_pid());
  {
    const auto observer = rig.observer();
    ASSERT_TRUE(halt_at_the_cut(*observer, worker));
    ::kill(worker, SIGKILL);
  }
  expect_end(sidecar, 1, kWorkerKilled);
  rig.expect_runs_on(seconds(10));
  rig.expect_nothing_lost(acknowledged_epochs(sidecar));
}

// Nobody is dead, but nobody moves either: the guard watches the clock.
TEST(SidecarFaults, WorkerHungWhileTheVmStandsAtTheCutIsEndedByTheGuard) {
  VMSHADOW_REQUIRE(guest_available({}));
  FaultRig rig({}, busy_witness());
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  SidecarProgram sidecar = rig.protect(store.address(), 2, milliseconds(5));
  {
    const auto observer = rig.observer();
    ASSERT_TRUE(halt_at_the_cut(*observer, must(sidecar.worker_pid())));
  }
  expect_end(sidecar, 1,
             {"kept the VM stopped for over 2000 ms and was killed", "the VM was released, runs on",
              "start the sidecar again"});
  rig.expect_runs_on(seconds(10));
  rig.expect_nothing_lost(acknowledged_epochs(sidecar));
  rig.expect_protectable_again(store);
}

TEST(SidecarFaults, GuardKilledMakesTheWorkerLeaveInOrder) {
  VMSHADOW_REQUIRE(guest_available({}));
  FaultRig rig({}, busy_witness());
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  std::set<std::uint64_t> acknowledged;
  for (int round = 0; round < 3; ++round) {
    SCOPED_TRACE(round);
    SidecarProgram sidecar = rig.protect(store.address(), 2, milliseconds(5));
    sidecar.process().kill();
    wait_until([&] { return !sentences(sidecar.messages(), "vmshadow-sidecar").empty(); });
    expect_sentence(sidecar.messages(), "vmshadow-sidecar",
                    {"the guard process", "was killed", "the VM was released, runs on",
                     "start the sidecar again"});
    EXPECT_TRUE(sidecar.summary());
    rig.expect_runs_on();
    acknowledged.merge(acknowledged_epochs(sidecar));
  }
  rig.expect_nothing_lost(acknowledged);
  rig.expect_protectable_again(store);
}

// As SIGKILL to the process group: nobody is left to release the VM. Between epochs it runs on all
// the same; a sidecar started later says what to do.
TEST(SidecarFaults, BothKilledIsExplainedByTheNextSidecar) {
  VMSHADOW_REQUIRE(guest_available({}));
  FaultRig rig;
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  SidecarProgram sidecar = rig.protect(store.address(), 1, std::chrono::hours(1));
  const pid_t worker = must(sidecar.worker_pid());
  ASSERT_TRUE(sidecar.process().signal(SIGSTOP));  // so that it does not see its worker die
  ::kill(worker, SIGKILL);
  sidecar.process().kill();
  rig.expect_reports_go_on();

  SidecarProgram next = must(SidecarProgram::start(rig.config(store.address())));
  expect_end(next, 1,
             {"VM 'vm1' cannot be protected: ", "in COLO already", "another vmshadow-sidecar",
              "send x-colo-lost-heartbeat"});
  rig.expect_reports_go_on();
  must(qmp::colo_lost_heartbeat(*rig.observer()));
  wait_until([&] { return !must(qmp::query_migrate(*rig.observer())).active(); });
  rig.expect_nothing_lost(acknowledged_epochs(sidecar));
  SidecarProgram again = rig.protect(store.address());
  EXPECT_EQ(must(again.stop()).text(), "exit code 0");
  rig.expect_exact();
}

TEST(SidecarFaults, BothKilledAtTheCutLeaveAVmThatTheNamedCommandWakes) {
  VMSHADOW_REQUIRE(guest_available({}));
  FaultRig rig({}, busy_witness());
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  SidecarProgram sidecar = rig.protect(store.address(), 2, milliseconds(5));
  const pid_t worker = must(sidecar.worker_pid());
  {
    const auto observer = rig.observer();
    ASSERT_TRUE(halt_at_the_cut(*observer, worker));
    ASSERT_TRUE(sidecar.process().signal(SIGSTOP));
    ::kill(worker, SIGKILL);
    sidecar.process().kill();
  }
  SidecarProgram next = must(SidecarProgram::start(rig.config(store.address())));
  expect_end(next, 1, {"in COLO already", "send x-colo-lost-heartbeat"});
  must(qmp::colo_lost_heartbeat(*rig.observer()));
  wait_until([&] {
    const auto observer = rig.observer();
    return must(qmp::query_status(*observer)).running &&
           !must(qmp::query_migrate(*observer)).active();
  });
  SidecarProgram again = rig.protect(store.address());
  EXPECT_EQ(must(again.stop()).text(), "exit code 0");
  rig.expect_runs_on(seconds(10));
  rig.expect_exact();
}

// Ctrl-C reaches guard and worker alike.
TEST(SidecarFaults, InterruptOfTheWholeGroupIsAnOrderlyEnd) {
  VMSHADOW_REQUIRE(guest_available({}));
  FaultRig rig;
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  SidecarProgram sidecar = rig.protect(store.address());
  const pid_t worker = must(sidecar.worker_pid());
  ASSERT_TRUE(sidecar.process().signal(SIGINT));
  ::kill(worker, SIGINT);
  EXPECT_EQ(must(sidecar.process().wait(io::deadline_after(kFaultPatience))).text(), "exit code 0")
      << sidecar.messages();
  EXPECT_EQ(sidecar.messages(), "");
  rig.expect_runs_on();
  rig.expect_nothing_lost(acknowledged_epochs(sidecar));
}

TEST(SidecarFaults, SecondSidecarOfTheSameVmIsRefusedAndTheFirstGoesOn) {
  VMSHADOW_REQUIRE(guest_available({}));
  FaultRig rig;
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  SidecarProgram first = rig.protect(store.address());

  SidecarProgram same_monitor = must(SidecarProgram::start(rig.config(store.address())));
  expect_end(same_monitor, 1,
             {rig.guest().qmp_path(), "another client holds the monitor",
              "end that client or give QEMU another -qmp monitor"});
  for (const char* name : {"vm1", "vm2"}) {
    SCOPED_TRACE(name);
    SidecarConfig config = rig.config(store.address());
    config.qmp_path = rig.guest().observer_qmp_path();
    config.vm = name;
    SidecarProgram other = must(SidecarProgram::start(config));
    expect_end(other, 1,
               {std::string("VM '") + name + "' cannot be protected: ",
                "in COLO already: another vmshadow-sidecar protects it"});
  }
  // The refused ones took no generation and left no trace.
  EXPECT_TRUE(stored_epochs(rig.store_directory(), "vm2").empty());
  must(first.wait_for_epochs(first.epochs() + 5, io::deadline_after(kFaultPatience)));
  EXPECT_EQ(must(first.stop()).text(), "exit code 0") << first.messages();
  rig.expect_runs_on();
  rig.expect_nothing_lost(acknowledged_epochs(first));
  rig.expect_exact();
}

// Two VMs under one name: the store grants the newer one and says so to the older.
TEST(SidecarFaults, AnotherVmOfTheSameNameIsNotMixedIn) {
  VMSHADOW_REQUIRE(guest_available({}));
  FaultRig rig;
  FaultRig impostor;
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  SidecarProgram first = rig.protect(store.address());
  SidecarProgram second = must(SidecarProgram::start(impostor.config(store.address())));
  expect_end(second, 1, {"the store at " + store.address() + " refuses", "VM 'vm1'"});
  impostor.expect_runs_on();
  must(first.wait_for_epochs(first.epochs() + 5, io::deadline_after(kFaultPatience)));
  EXPECT_EQ(must(first.stop()).text(), "exit code 0") << first.messages();
  rig.expect_nothing_lost(acknowledged_epochs(first));
  rig.expect_exact();
}

}  // namespace
}  // namespace vmshadow::test
