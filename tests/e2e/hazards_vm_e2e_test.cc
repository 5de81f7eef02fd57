// What can happen to a VM while it is protected, or just before: its guest panics, resets or shuts
// down; its operator suspends, migrates or changes it; its QEMU ends, loses the monitor, or is one
// whose COLO must not be used.
#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "qmp/commands.h"
#include "support/fault_rig.h"
#include "support/prerequisite.h"
#include "support/scripted_monitor.h"

namespace vmshadow::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::AnyOf;
using ::testing::Contains;
using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::StartsWith;
using Json = nlohmann::json;

/// Protects again when protection was lost, as it does by default.
SidecarProgram protect_lastingly(FaultRig& rig, const StoreProgram& store) {
  SidecarConfig config = rig.config(store.address());
  config.once = false;
  SidecarProgram sidecar = must(SidecarProgram::start(config));
  must(sidecar.wait_for_epochs(3, io::deadline_after(kFaultPatience)));
  return sidecar;
}

std::string status_of(FaultRig& rig) { return must(qmp::query_status(*rig.observer())).text; }

/// `stop` between checkpoints: inside one it is overtaken by the checkpoint's own resume.
void suspend(FaultRig& rig) {
  wait_until([&] {
    must(qmp::stop(*rig.observer()));
    ::poll(nullptr, 0, 100);
    return status_of(rig) == "paused";
  });
}

void wait_for_words(const SidecarProgram& sidecar, const std::string& words) {
  wait_until([&] { return sidecar.messages().find(words) != std::string::npos; });
}

// ---- the guest

// QEMU aborts if it is told to stop a VM that has panicked.
TEST(HazardGuest, Panics) {
  VMSHADOW_REQUIRE(guest_available({}));
  FaultRig rig({"-device", "pvpanic", "-action", "panic=pause"},
               {"arena_mib=8", "pages=200", "panic_after=400"});
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  SidecarProgram sidecar = rig.protect(store.address());
  wait_for_words(sidecar, "the VM is not running (status guest-panicked); no epoch taken");
  const std::size_t epochs = sidecar.epochs();
  ::poll(nullptr, 0, 1000);
  EXPECT_LE(sidecar.epochs(), epochs + 1);  // one may have been cut and not acknowledged
  EXPECT_EQ(status_of(rig), "guest-panicked");
  EXPECT_EQ(must(sidecar.stop()).text(), "exit code 0") << sidecar.messages();
  EXPECT_TRUE(rig.guest().process().running());
  EXPECT_FALSE(must(qmp::query_migrate(*rig.observer())).active());
  EXPECT_FALSE(must(qmp::query_status(*rig.observer())).running);
  rig.expect_nothing_lost(acknowledged_epochs(sidecar));
  rig.expect_exact("1");  // the newest would panic again
}

TEST(HazardGuest, Resets) {
  VMSHADOW_REQUIRE(guest_available({}));
  FaultRig rig({"-action", "reboot=reset"});
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  SidecarProgram sidecar = rig.protect(store.address());
  must(rig.observer()->execute("system_reset"));
  must(sidecar.wait_for_epochs(sidecar.epochs() + 10, io::deadline_after(kFaultPatience)));
  EXPECT_EQ(status_of(rig), "running");
  EXPECT_EQ(sidecar.attachments(), 1U);
  EXPECT_EQ(must(sidecar.stop()).text(), "exit code 0") << sidecar.messages();
  EXPECT_EQ(sidecar.messages(), "");
  rig.expect_nothing_lost(acknowledged_epochs(sidecar));
  const auto restored =
      must(RestoredGuest::restore(rig.store_directory(), "vm1", "latest", rig.guest()));
  must(restored->witness().wait_for_lines(10, io::deadline_after(kFaultPatience)));
}

// The guest's own reset ends a QEMU that was started with -no-reboot, as its shutdown does.
TEST(HazardGuest, ShutsDown) {
  VMSHADOW_REQUIRE(guest_available({}));
  FaultRig rig;
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  SidecarProgram sidecar = rig.protect(store.address(), 5);
  static_cast<void>(rig.observer()->execute("system_reset"));
  expect_end(sidecar, 3, {"the monitor of VM 'vm1' is gone", "the newest committed epoch is "});
  rig.expect_nothing_lost(acknowledged_epochs(sidecar));
  rig.expect_exact();
}

// With -no-shutdown QEMU stays, in a state in which it does not survive the end of COLO.
TEST(HazardGuest, ShutsDownUnderAQemuThatStays) {
  VMSHADOW_REQUIRE(guest_available({}));
  FaultRig rig({"-no-shutdown"});
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  SidecarProgram sidecar = rig.protect(store.address());
  // One that falls into a checkpoint is overtaken by QEMU's own resume, as a suspension is.
  wait_until([&] {
    {
      const auto observer = rig.observer();
      if (must(qmp::query_status(*observer)).running) must(observer->execute("system_reset"));
    }
    ::poll(nullptr, 0, 500);
    return sidecar.messages().find("the VM is not running (status shutdown); no epoch taken") !=
           std::string::npos;
  });
  ASSERT_TRUE(sidecar.process().signal(SIGTERM));
  wait_for_words(sidecar, "reset or quit it through its monitor");
  EXPECT_TRUE(rig.guest().process().running());
  EXPECT_EQ(status_of(rig), "shutdown");
  static_cast<void>(qmp::quit(*rig.observer()));
  EXPECT_EQ(must(sidecar.process().wait(io::deadline_after(kFaultPatience))).text(), "exit code 3")
      << sidecar.messages();
  rig.expect_nothing_lost(acknowledged_epochs(sidecar));
  rig.expect_exact();
}

// ---- the operator

TEST(HazardOperator, SuspendsTheVm) {
  VMSHADOW_REQUIRE(guest_available({}));
  FaultRig rig;
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  SidecarProgram sidecar = rig.protect(store.address());
  suspend(rig);
  wait_for_words(sidecar, "no epoch taken");
  ::poll(nullptr, 0, 200);  // epochs cut before the suspension may still be committed
  const std::size_t epochs = sidecar.epochs();
  const std::size_t reports = rig.guest().witness().lines().size();
  ::poll(nullptr, 0, 1000);
  EXPECT_EQ(sidecar.epochs(), epochs);
  EXPECT_EQ(rig.guest().witness().lines().size(), reports);
  EXPECT_EQ(status_of(rig), "paused");
  EXPECT_THAT(sidecar.messages(), HasSubstr("the VM is not running (status paused)"));

  must(qmp::cont(*rig.observer()));
  must(sidecar.wait_for_epochs(epochs + 5, io::deadline_after(kFaultPatience)));
  EXPECT_EQ(must(sidecar.stop()).text(), "exit code 0") << sidecar.messages();
  rig.expect_runs_on();
  rig.expect_nothing_lost(acknowledged_epochs(sidecar));
  rig.expect_exact();
}

// QEMU starts the VM as it leaves COLO: neither end of a sidecar may undo a suspension by that.
TEST(HazardOperator, SuspendsTheVmAndTheSidecarEnds) {
  VMSHADOW_REQUIRE(guest_available({}));
  FaultRig rig;
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  for (const int number : {SIGTERM, SIGKILL}) {
    SCOPED_TRACE(number);
    SidecarProgram sidecar = rig.protect(store.address());
    suspend(rig);
    ::kill(must(sidecar.worker_pid()), number);
    const ExitStatus status = must(sidecar.process().wait(io::deadline_after(kFaultPatience)));
    EXPECT_EQ(status.code, number == SIGTERM ? 0 : 1) << sidecar.messages();
    EXPECT_EQ(status_of(rig), "paused");
    EXPECT_FALSE(must(qmp::query_migrate(*rig.observer())).active());
    must(qmp::cont(*rig.observer()));
    rig.expect_nothing_lost(acknowledged_epochs(sidecar));
  }
  // The guest stood still for as long as the sidecar took to end: that was the suspension.
  rig.expect_protectable_again(store, kFaultPatience);
}

// A protection that has begun waits for a suspended VM instead of ending.
TEST(HazardOperator, SuspendsTheVmWhileProtectionIsLost) {
  VMSHADOW_REQUIRE(guest_available({}));
  FaultRig rig;
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  SidecarProgram sidecar = protect_lastingly(rig, store);
  suspend(rig);
  ::kill(must(sidecar.worker_pid()), SIGKILL);
  wait_for_words(sidecar, "VM 'vm1' cannot be protected: the VM is not running (status paused)");
  EXPECT_EQ(status_of(rig), "paused");
  must(qmp::cont(*rig.observer()));
  wait_until([&] { return sidecar.attachments() == 2; });
  EXPECT_EQ(must(sidecar.stop()).text(), "exit code 0") << sidecar.messages();
  rig.expect_runs_on();
}

TEST(HazardOperator, PlugsADevice) {
  VMSHADOW_REQUIRE(guest_available({}));
  FaultRig rig;
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  SidecarProgram sidecar = rig.protect(store.address());
  const Json device{{"driver", "virtio-rng-pci"}, {"id", "plugged"}};
  const auto refused = rig.observer()->execute("device_add", device);
  ASSERT_FALSE(refused);
  EXPECT_THAT(refused.error().message, HasSubstr("migrat"));
  must(sidecar.wait_for_epochs(sidecar.epochs() + 3, io::deadline_after(kFaultPatience)));

  // Leave, plug, come back.
  EXPECT_EQ(must(sidecar.stop()).text(), "exit code 0") << sidecar.messages();
  must(rig.observer()->execute("device_add", device));
  SidecarProgram again = rig.protect(store.address());
  const auto removed = rig.observer()->execute("device_del", {{"id", "plugged"}});
  EXPECT_FALSE(removed);
  EXPECT_EQ(must(again.stop()).text(), "exit code 0") << again.messages();
  rig.expect_runs_on();
  rig.expect_nothing_lost(acknowledged_epochs(again));
}

/// As virsh save and libvirt's migrations do.
void migrate_slowly(FaultRig& rig) {
  must(qmp::migrate_set_parameters(*rig.observer(), {{"max-bandwidth", 4096}}));
  must(qmp::migrate(*rig.observer(), "exec:cat > /dev/null"));
  wait_until([&] { return must(qmp::query_migrate(*rig.observer())).status == "active"; });
}

void cancel_migration(FaultRig& rig) {
  must(qmp::migrate_cancel(*rig.observer()));
  wait_until([&] { return !must(qmp::query_migrate(*rig.observer())).active(); });
}

TEST(HazardOperator, MigratesBeforeTheSidecarStarts) {
  VMSHADOW_REQUIRE(guest_available({}));
  FaultRig rig;
  migrate_slowly(rig);
  SidecarConfig config = rig.config("127.0.0.1:1");
  config.once = false;
  SidecarProgram sidecar = must(SidecarProgram::start(config));
  expect_end(sidecar, 1,
             {"VM 'vm1' cannot be protected: ",
              "a migration of this VM is under way (status active)", "when it is over"});
  EXPECT_EQ(must(qmp::query_migrate(*rig.observer())).status, "active");
  cancel_migration(rig);
  rig.expect_runs_on();
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  rig.expect_protectable_again(store);
}

// QEMU 10 refuses it. One of 7.2 loses track of its own migration over it; between two cuts the
// guest does not notice, and is kept from it.
TEST(HazardOperator, MigratesAVmThatIsProtected) {
  VMSHADOW_REQUIRE(guest_available({}));
  FaultRig rig;
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  SidecarProgram sidecar = rig.protect(store.address(), 1, std::chrono::hours(1));
  EXPECT_FALSE(qmp::migrate(*rig.observer(), "exec:cat > /dev/null"));
  EXPECT_EQ(status_of(rig), "running");
  ASSERT_TRUE(sidecar.process().signal(SIGTERM));
  const ExitStatus ended = must(sidecar.process().wait(io::deadline_after(kFaultPatience)));
  if (rig.observer()->version().major >= 10) {
    EXPECT_EQ(ended.text(), "exit code 0") << sidecar.messages();
  } else {
    EXPECT_EQ(ended.text(), "exit code 1");
    EXPECT_THAT(sidecar.messages(), HasSubstr("the VM runs on, but it was not released: QEMU's "
                                              "migration does not end (status "));
  }
  EXPECT_EQ(status_of(rig), "running");
  rig.expect_reports_go_on(seconds(1));
  rig.expect_nothing_lost(acknowledged_epochs(sidecar));
  rig.expect_exact();
}

TEST(HazardOperator, EndsTheProtectionAndMigrates) {
  VMSHADOW_REQUIRE(guest_available({}));
  FaultRig rig;
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  SidecarProgram sidecar = protect_lastingly(rig, store);
  must(qmp::colo_lost_heartbeat(*rig.observer()));
  wait_until([&] { return !must(qmp::query_migrate(*rig.observer())).active(); });
  wait_for_words(sidecar, "protecting the VM again in 1 s");
  must(qmp::migrate_set_capabilities(*rig.observer(), {{"x-colo", false}}));
  migrate_slowly(rig);
  wait_for_words(sidecar, "a migration of this VM is under way (status active)");
  EXPECT_EQ(must(qmp::query_migrate(*rig.observer())).status, "active");
  cancel_migration(rig);
  wait_until([&] { return sidecar.attachments() == 2; });
  EXPECT_EQ(must(sidecar.stop()).text(), "exit code 0") << sidecar.messages();
  rig.expect_runs_on();
  rig.expect_nothing_lost(acknowledged_epochs(sidecar));
  rig.expect_exact();
}

// ---- QEMU

TEST(HazardQemu, IsKilledOrQuits) {
  VMSHADOW_REQUIRE(guest_available({}));
  for (const bool killed : {false, true}) {
    SCOPED_TRACE(killed ? "killed" : "quit");
    FaultRig rig;
    StoreProgram store = must(StoreProgram::start(rig.store_directory()));
    SidecarConfig config = rig.config(store.address());
    config.once = false;
    SidecarProgram sidecar = must(SidecarProgram::start(config));
    must(sidecar.wait_for_epochs(5, io::deadline_after(kFaultPatience)));
    if (killed) {
      rig.guest().kill();
    } else {
      static_cast<void>(qmp::quit(*rig.observer()));
    }
    expect_end(sidecar, 3,
               {"the monitor of VM 'vm1' is gone", "it has ended, or is ending",
                "the newest committed epoch is "});
    const auto acknowledged = acknowledged_epochs(sidecar);
    ASSERT_FALSE(acknowledged.empty());
    EXPECT_THAT(sidecar.messages(), HasSubstr("the newest committed epoch is " +
                                              std::to_string(*acknowledged.rbegin()) + "\n"));
    rig.expect_nothing_lost(acknowledged);
    rig.expect_exact();
  }
}

TEST(HazardQemu, IsKilledWithTheWorker) {
  VMSHADOW_REQUIRE(guest_available({}));
  FaultRig rig;
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  SidecarProgram sidecar = protect_lastingly(rig, store);
  const pid_t worker = must(sidecar.worker_pid());
  ::kill(worker, SIGSTOP);
  rig.guest().kill();
  ::kill(worker, SIGKILL);
  expect_end(sidecar, 3, {"the worker was killed by signal 9, and the VM is gone"});
}

/// Cuts the monitor's connection of `worker`, whose socket leads to `path`, behind its back.
void cut_monitor(pid_t worker, const std::string& path) {
  const UniqueFd process(static_cast<int>(::syscall(SYS_pidfd_open, worker, 0)));
  for (const auto& entry :
       std::filesystem::directory_iterator(fmt::format("/proc/{}/fd", worker))) {
    const int number = std::stoi(entry.path().filename().string());
    const UniqueFd fd(static_cast<int>(::syscall(SYS_pidfd_getfd, process.get(), number, 0)));
    sockaddr_un peer{};
    socklen_t bytes = sizeof peer;
    if (!fd || ::getpeername(fd.get(), reinterpret_cast<sockaddr*>(&peer), &bytes) != 0) continue;
    if (peer.sun_family != AF_UNIX || path != peer.sun_path) continue;
    ::shutdown(fd.get(), SHUT_RDWR);
    return;
  }
  throw std::runtime_error("the worker has no connection to " + path);
}

TEST(HazardQemu, LosesTheMonitor) {
  VMSHADOW_REQUIRE(guest_available({}));
  FaultRig rig;
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  SidecarProgram sidecar = protect_lastingly(rig, store);
  cut_monitor(must(sidecar.worker_pid()), rig.guest().qmp_path());
  wait_for_words(sidecar, "VM 'vm1' is no longer protected: ");
  EXPECT_THAT(sidecar.messages(), HasSubstr("closed the monitor's connection"));
  wait_until([&] { return sidecar.attachments() == 2; });
  EXPECT_EQ(must(sidecar.stop()).text(), "exit code 0") << sidecar.messages();
  rig.expect_runs_on();
  rig.expect_nothing_lost(acknowledged_epochs(sidecar));
  rig.expect_exact();
}

// ---- a QEMU that must not be captured: none of this kind is here, so its monitor is played

/// What a QEMU that can be captured answers to questions.
Json answer_well(const Json& command) {
  const std::string name = command.value("execute", "");
  const auto returns = [](Json value) { return Json{{"return", std::move(value)}}; };
  if (name == "query-commands") return returns({{{"name", "x-colo-lost-heartbeat"}}});
  if (name == "query-migrate-capabilities") {
    return returns({{{"capability", "x-colo"}, {"state", false}}});
  }
  if (name == "query-status") return returns({{"status", "running"}, {"running", true}});
  if (name == "qom-list" || name == "query-block") return returns(Json::array());
  if (name == "query-migrate") return returns(Json::object());
  return {{"error", {{"class", "CommandNotFound"}, {"desc", name + " has not been found"}}}};
}

/// A sidecar refuses it with these words, and has asked, not told.
void expect_qemu_refused(const std::string& version, ScriptedMonitor::Script script,
                         const std::vector<std::string>& words) {
  SCOPED_TRACE(version);
  TempDir folder;
  ScriptedMonitor monitor(folder.file("qmp"), version, std::move(script));
  SidecarConfig config{"vm1", folder.file("qmp"), "127.0.0.1:1", milliseconds(20), {}, false};
  config.extra_args = {"--source", "colo"};
  SidecarProgram sidecar = must(SidecarProgram::start(config));
  expect_end(sidecar, 1, words);
  EXPECT_THAT(monitor.heard(),
              Each(AnyOf(StartsWith("query-"), StartsWith("qom-list"), "qmp_capabilities")));
}

TEST(HazardQemu, HasABrokenColo) {
  for (const char* version : {"10.0.0", "10.0.2", "10.0.6", "10.1.0", "10.1.5"}) {
    expect_qemu_refused(
        version, answer_well,
        {"VM 'vm1' cannot be protected: ", std::string("QEMU ") + version +
                                               " has a broken COLO that would leave the "
                                               "VM paused"});
  }
}

TEST(HazardQemu, HasNoColo) {
  const auto script = [](const Json& command) {
    if (command.value("execute", "") != "query-commands") return answer_well(command);
    return Json{{"return", {{{"name", "migrate"}}}}};
  };
  expect_qemu_refused("9.2.4", script,
                      {"VM 'vm1' cannot be protected: ",
                       "built without COLO (no "
                       "x-colo-lost-heartbeat)",
                       "replication support"});
}

TEST(HazardQemu, HasAVfioDevice) {
  const auto script = [](const Json& command) {
    const bool here = command.value("execute", "") == "qom-list" &&
                      command.at("arguments").at("path") == "/machine/peripheral";
    if (!here) return answer_well(command);
    return Json{{"return", {{{"name", "gpu"}, {"type", "child<vfio-pci>"}}}}};
  };
  expect_qemu_refused("9.2.4", script,
                      {"VM 'vm1' cannot be protected: ", "/machine/peripheral/gpu (vfio-pci)",
                       "a passed-through host device keeps its state in hardware"});
}

}  // namespace
}  // namespace vmshadow::test
