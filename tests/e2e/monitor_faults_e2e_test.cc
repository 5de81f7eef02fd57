// What a sidecar may meet at a VM's monitor: no monitor, another's, none that speaks QMP; a VM that
// cannot be protected, and one whose administrator or guest acts while it is protected.
#include <nlohmann/json.hpp>
#include <poll.h>
#include <signal.h>

#include <fstream>
#include <thread>

#include "qmp/commands.h"
#include "support/fault_rig.h"
#include "support/prerequisite.h"

namespace vmshadow::test {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;

/// Nothing listens there: what is refused before the store is asked needs none.
constexpr const char* kNoStore = "127.0.0.1:1";

void expect_refused(SidecarConfig config, const std::vector<std::string>& words) {
  config.store = kNoStore;
  SidecarProgram sidecar = must(SidecarProgram::start(config));
  expect_end(sidecar, 1, words);
  EXPECT_EQ(sidecar.epochs(), 0U);
}

void expect_monitor_refused(const std::string& qmp_path, const std::vector<std::string>& words) {
  SCOPED_TRACE(qmp_path);
  expect_refused({"vm1", qmp_path, kNoStore, milliseconds(20), {}}, words);
}

/// A unix socket that greets with `greeting` and then says nothing more.
class OddMonitor {
 public:
  OddMonitor(const std::string& path, std::string greeting)
      : listener_(must(io::listen_unix(path))), thread_([this, greeting = std::move(greeting)] {
          auto peer =
              io::accept_connection(listener_.get(), -1, io::deadline_after(kFaultPatience));
          if (!peer || !*peer) return;
          static_cast<void>(io::write_all((*peer)->get(), std::as_bytes(std::span(greeting)),
                                          io::deadline_after(kFaultPatience)));
          std::byte ignored[256];
          while (true) {
            const auto got =
                io::read_some((*peer)->get(), ignored, io::deadline_after(kFaultPatience));
            if (!got || *got == 0) return;
          }
        }) {}
  ~OddMonitor() { thread_.join(); }
  OddMonitor(const OddMonitor&) = delete;
  OddMonitor& operator=(const OddMonitor&) = delete;

 private:
  UniqueFd listener_;
  std::thread thread_;
};

TEST(MonitorFaults, WhatIsNoMonitorIsRefused) {
  TempDir folder;
  expect_monitor_refused(folder.file("none"),
                         {"connecting to " + folder.file("none"), "No such file or directory",
                          "-qmp unix:PATH,server=on,wait=off"});
  std::ofstream(folder.file("file")) << "x";
  expect_monitor_refused(folder.file("file"), {"connecting to " + folder.file("file"),
                                               "it is not a socket", "-qmp unix:PATH"});
  expect_monitor_refused(folder.path(), {"it is not a socket"});
  { const UniqueFd stale = must(io::listen_unix(folder.file("stale"))); }
  expect_monitor_refused(folder.file("stale"), {"connecting to " + folder.file("stale"),
                                                "no QEMU listens there any more", "start the VM"});
}

TEST(MonitorFaults, WhatDoesNotSpeakQmpIsRefused) {
  TempDir folder;
  const std::vector<std::string> not_qmp{"not a QMP monitor",
                                         "give the path of a -qmp socket, one with mode=control"};
  {
    const OddMonitor garbage(folder.file("garbage"), std::string("\x01\xff SSH-2.0 \n{]}\n", 15));
    expect_monitor_refused(folder.file("garbage"), not_qmp);
  }
  {
    const OddMonitor other(folder.file("other"), "{\"jsonrpc\": \"2.0\"}\r\n");
    expect_monitor_refused(folder.file("other"), not_qmp);
  }
  {
    const OddMonitor silent(folder.file("silent"), "");
    expect_monitor_refused(folder.file("silent"),
                           {folder.file("silent"), "no greeting within",
                            "another client holds the monitor, or QEMU is stopped"});
  }
}

TEST(MonitorFaults, HumanMonitorOfARealQemuIsRefused) {
  VMSHADOW_REQUIRE(guest_available({}));
  TempDir folder;
  FaultRig rig({"-chardev", "socket,id=human,server=on,wait=off,path=" + folder.file("human"),
                "-mon", "chardev=human,mode=readline"});
  expect_monitor_refused(folder.file("human"),
                         {"not a QMP monitor", "give the path of a -qmp socket"});
  rig.expect_runs_on();
}

TEST(MonitorFaults, MonitorHeldByAnotherClientIsRefused) {
  VMSHADOW_REQUIRE(guest_available({}));
  FaultRig rig;
  {
    const auto holder = must(qmp::Session::connect(rig.guest().qmp_path()));
    expect_refused(rig.config(kNoStore),
                   {rig.guest().qmp_path(), "another client holds the monitor",
                    "give QEMU another -qmp monitor"});
  }
  rig.expect_runs_on();
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  rig.expect_protectable_again(store);
}

TEST(MonitorFaults, DeviceThatCannotBeCapturedIsRefusedByName) {
  VMSHADOW_REQUIRE(guest_available({}));
  FaultRig rig({"-drive", "if=none,id=disk,driver=null-co,size=1M,read-zeroes=on", "-device",
                "nvme,drive=disk,serial=1,id=fast"});
  SidecarConfig config = rig.config(kNoStore);
  config.extra_args = {"--ignore-disks"};
  expect_refused(
      config, {"VM 'vm1' cannot be protected: ", "devices whose state cannot be captured", "nvme",
               "remove them to protect it"});
  // Nothing was touched.
  EXPECT_EQ(must(qmp::query_migrate(*rig.observer())).status, "none");
  rig.expect_runs_on();
}

TEST(MonitorFaults, WritableDiskIsRefusedUnlessToldOtherwise) {
  VMSHADOW_REQUIRE(guest_available({}));
  FaultRig rig({"-drive", "if=none,id=disk,driver=null-co,size=1M,read-zeroes=on", "-device",
                "virtio-blk-pci,drive=disk,id=data"});
  expect_refused(rig.config(kNoStore), {"VM 'vm1' cannot be protected: ", "disks that it writes to",
                                        "data", "--ignore-disks protects RAM and devices alone"});
  rig.expect_runs_on();
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  SidecarConfig config = rig.config(store.address());
  config.extra_args = {"--ignore-disks"};
  SidecarProgram sidecar = must(SidecarProgram::start(config));
  must(sidecar.wait_for_epochs(3, io::deadline_after(kFaultPatience)));
  EXPECT_EQ(must(sidecar.stop()).text(), "exit code 0") << sidecar.messages();
  rig.expect_exact();
}

TEST(MonitorFaults, PausedVmIsRefusedAndStaysPaused) {
  VMSHADOW_REQUIRE(guest_available({}));
  FaultRig rig;
  must(qmp::stop(*rig.observer()));
  expect_refused(rig.config(kNoStore),
                 {"VM 'vm1' cannot be protected: ", "the VM is not running (status paused)",
                  "start or resume it first"});
  EXPECT_EQ(must(qmp::query_status(*rig.observer())).text, "paused");
  must(qmp::cont(*rig.observer()));
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  rig.expect_protectable_again(store);
}

TEST(MonitorFaults, MigrationOfSomebodyElseIsLeftAlone) {
  VMSHADOW_REQUIRE(guest_available({}));
  FaultRig rig;
  // Slow, so that it is under way as long as the test needs it.
  must(qmp::migrate_set_parameters(*rig.observer(), {{"max-bandwidth", 4096}}));
  must(qmp::migrate(*rig.observer(), "exec:cat > /dev/null"));
  wait_until([&] { return must(qmp::query_migrate(*rig.observer())).status == "active"; });
  expect_refused(rig.config(kNoStore),
                 {"VM 'vm1' cannot be protected: ",
                  "a migration of this VM is under way (status active)", "when it is over"});
  EXPECT_EQ(must(qmp::query_migrate(*rig.observer())).status, "active");
  must(qmp::migrate_cancel(*rig.observer()));
  wait_until([&] { return !must(qmp::query_migrate(*rig.observer())).active(); });
  rig.expect_runs_on();
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  rig.expect_protectable_again(store);
}

TEST(MonitorFaults, SuspendedVmStaysSuspendedAndEpochsGoOnAfterwards) {
  VMSHADOW_REQUIRE(guest_available({}));
  FaultRig rig;
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  SidecarProgram sidecar = rig.protect(store.address());
  // Between checkpoints: `stop` inside one is overtaken by the checkpoint's own resume.
  wait_until([&] {
    must(qmp::stop(*rig.observer()));
    ::poll(nullptr, 0, 100);
    return must(qmp::query_status(*rig.observer())).text == "paused";
  });
  wait_until([&] { return sidecar.messages().find("no epoch taken") != std::string::npos; });
  ::poll(nullptr, 0, 200);  // epochs cut before the suspension may still be committed
  const std::size_t epochs = sidecar.epochs();
  const std::size_t reports = rig.guest().witness().lines().size();
  ::poll(nullptr, 0, 1000);
  EXPECT_EQ(sidecar.epochs(), epochs);
  EXPECT_EQ(rig.guest().witness().lines().size(), reports);
  EXPECT_EQ(must(qmp::query_status(*rig.observer())).text, "paused");
  EXPECT_THAT(sidecar.messages(), HasSubstr("the VM is not running (status paused)"));

  must(qmp::cont(*rig.observer()));
  must(sidecar.wait_for_epochs(epochs + 5, io::deadline_after(kFaultPatience)));
  EXPECT_EQ(must(sidecar.stop()).text(), "exit code 0") << sidecar.messages();
  rig.expect_runs_on();
  rig.expect_nothing_lost(acknowledged_epochs(sidecar));
  rig.expect_exact();
}

// QEMU starts the VM as it leaves COLO: neither end of a sidecar may undo a suspension by that.
TEST(MonitorFaults, SuspensionOutlivesTheSidecar) {
  VMSHADOW_REQUIRE(guest_available({}));
  FaultRig rig;
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  for (const int number : {SIGTERM, SIGKILL}) {
    SCOPED_TRACE(number);
    SidecarProgram sidecar = rig.protect(store.address());
    wait_until([&] {
      must(qmp::stop(*rig.observer()));
      ::poll(nullptr, 0, 100);
      return must(qmp::query_status(*rig.observer())).text == "paused";
    });
    ::kill(must(sidecar.worker_pid()), number);
    const ExitStatus status = must(sidecar.process().wait(io::deadline_after(kFaultPatience)));
    EXPECT_EQ(status.code, number == SIGTERM ? 0 : 1) << sidecar.messages();
    EXPECT_EQ(must(qmp::query_status(*rig.observer())).text, "paused");
    EXPECT_FALSE(must(qmp::query_migrate(*rig.observer())).active());
    must(qmp::cont(*rig.observer()));
    rig.expect_nothing_lost(acknowledged_epochs(sidecar));
  }
  rig.expect_protectable_again(store);
}

TEST(MonitorFaults, QemuThatEndsIsSaidWithItsOwnExitCode) {
  VMSHADOW_REQUIRE(guest_available({}));
  for (const bool killed : {false, true}) {
    SCOPED_TRACE(killed ? "killed" : "quit");
    FaultRig rig;
    StoreProgram store = must(StoreProgram::start(rig.store_directory()));
    SidecarProgram sidecar = rig.protect(store.address(), 5);
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

// The guest's own reset ends a QEMU that was started with -no-reboot, as its shutdown does.
TEST(MonitorFaults, GuestThatShutsDownIsSaidWithItsOwnExitCode) {
  VMSHADOW_REQUIRE(guest_available({}));
  FaultRig rig;
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  SidecarProgram sidecar = rig.protect(store.address(), 5);
  static_cast<void>(rig.observer()->execute("system_reset"));
  expect_end(sidecar, 3, {"the monitor of VM 'vm1' is gone", "the newest committed epoch is "});
  rig.expect_nothing_lost(acknowledged_epochs(sidecar));
  rig.expect_exact();
}

}  // namespace
}  // namespace vmshadow::test
