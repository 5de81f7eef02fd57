// What a sidecar may meet at a VM's monitor: no monitor, another's, none that speaks QMP; a VM that
// cannot be protected.
#include <nlohmann/json.hpp>

#include <algorithm>
#include <fstream>
#include <thread>

#include "qmp/commands.h"
#include "support/fault_rig.h"
#include "support/prerequisite.h"

namespace vmshadow::test {
namespace {

using std::chrono::milliseconds;

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

TEST(MonitorFaults, WritableDiskIsProtectedUnlessToldOtherwise) {
  VMSHADOW_REQUIRE(guest_available({}));
  FaultRig rig({"-drive", "if=none,id=disk,driver=null-co,size=1M,read-zeroes=on", "-device",
                "virtio-blk-pci,drive=disk,id=data"});
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  {
    SidecarProgram sidecar = rig.protect(store.address());
    EXPECT_EQ(must(sidecar.stop()).text(), "exit code 0") << sidecar.messages();
    const auto lines = sidecar.lines();
    const auto first = std::find_if(lines.begin(), lines.end(), [](const auto& line) {
      return line.value("event", "") == "epoch";
    });
    ASSERT_NE(first, lines.end());
    EXPECT_GE(first->at("disk_pages"), (1 << 20) / kPageBytes);
    EXPECT_TRUE(must(qmp::query_block_jobs(*rig.observer())).empty());
  }
  const Ran undecided = must(run_program(
      {program_path("shadow-replay"), "--store", rig.store_directory(), "restore", "vm1"}));
  EXPECT_FALSE(undecided.status.success());
  expect_sentence(undecided.err, "shadow-replay",
                  {"holds disks", "data", "--disks", "--old-disks"});
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

}  // namespace
}  // namespace vmshadow::test
