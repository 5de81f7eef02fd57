// What can happen to the link between a sidecar and its store: cut, idle or in mid-epoch; stalled;
// slow.
#include <nlohmann/json.hpp>
#include <poll.h>

#include <random>

#include "support/fault_rig.h"
#include "support/prerequisite.h"
#include "support/tcp_proxy.h"

namespace vmshadow::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr seconds kLinkPatience{60};
constexpr seconds kStall{4};

double newest_lag_ms(const SidecarProgram& sidecar) {
  double lag = 0;
  for (const auto& line : sidecar.lines()) {
    if (line.value("event", "") == "epoch") lag = line.at("lag_ms").get<double>();
  }
  return lag;
}

TEST(LinkFaults, CutInMidEpochReleasesTheVm) {
  VMSHADOW_REQUIRE(guest_available({}));
  FaultRig rig({}, {"arena_mib=8", "pages=all", "tick_us=5000", "fill_words=64"});
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  const auto proxy = must(TcpProxy::start(store.port()));
  std::set<std::uint64_t> acknowledged;
  std::minstd_rand random(4);
  for (int round = 0; round < 4; ++round) {
    SCOPED_TRACE(round);
    SidecarProgram sidecar = rig.protect(proxy->address(), 3, milliseconds(5));
    proxy->cut_after(1000 + random() % 500000);
    expect_end(sidecar, 1,
               {"VM 'vm1' is no longer protected: ", "the store at " + proxy->address(),
                "the VM runs on", "start the sidecar again"});
    rig.expect_runs_on();
    acknowledged.merge(acknowledged_epochs(sidecar));
  }
  rig.expect_nothing_lost(acknowledged);
  rig.expect_exact();
  rig.expect_protectable_again(store);
}

TEST(LinkFaults, CutInTheFullPassReleasesTheVm) {
  VMSHADOW_REQUIRE(guest_available({}));
  FaultRig rig;
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  const auto proxy = must(TcpProxy::start(store.port()));
  proxy->cut_after(20000);
  SidecarProgram sidecar = must(SidecarProgram::start(rig.config(proxy->address())));
  expect_end(sidecar, 1,
             {"VM 'vm1' is no longer protected: ", "the store at " + proxy->address(),
              "no epoch was committed"});
  rig.expect_runs_on();
  rig.expect_protectable_again(store);
}

// Nothing is being sent, so it is the next epoch's turn to notice.
TEST(LinkFaults, CutWhileIdleReleasesTheVm) {
  VMSHADOW_REQUIRE(guest_available({}));
  FaultRig rig;
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  const auto proxy = must(TcpProxy::start(store.port()));
  SidecarProgram sidecar = rig.protect(proxy->address(), 2, seconds(1));
  proxy->cut();
  expect_end(sidecar, 1,
             {"VM 'vm1' is no longer protected: ", "the store at " + proxy->address(),
              "closed the connection"});
  rig.expect_runs_on();
  rig.expect_nothing_lost(acknowledged_epochs(sidecar));
  rig.expect_protectable_again(store);
}

TEST(LinkFaults, StalledLinkCostsLagAndNothingElse) {
  VMSHADOW_REQUIRE(guest_available({}));
  FaultRig rig({}, {"arena_mib=8", "pages=500", "fill_words=64"});
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  const auto proxy = must(TcpProxy::start(store.port()));
  SidecarProgram sidecar = rig.protect(proxy->address(), 5);
  proxy->stall();
  ::poll(nullptr, 0, static_cast<int>(milliseconds(kStall).count()));
  const std::size_t during = sidecar.epochs();
  EXPECT_TRUE(sidecar.process().running()) << sidecar.messages();
  proxy->go_on();
  must(sidecar.wait_for_epochs(during + 1, io::deadline_after(kLinkPatience)));
  double peak = 0;
  for (const auto& line : sidecar.lines()) {
    if (line.value("event", "") == "epoch") peak = std::max(peak, line.at("lag_ms").get<double>());
  }
  must(sidecar.wait_for_epochs(during + 20, io::deadline_after(kLinkPatience)));
  for (const auto& line : sidecar.lines()) {
    if (line.value("event", "") == "epoch") peak = std::max(peak, line.at("lag_ms").get<double>());
  }
  const double stall_ms = static_cast<double>(milliseconds(kStall).count());
  EXPECT_GT(peak, stall_ms * 0.9);
  EXPECT_LT(newest_lag_ms(sidecar), stall_ms / 2);
  EXPECT_EQ(must(sidecar.stop()).text(), "exit code 0");
  EXPECT_EQ(sidecar.messages(), "");
  // The stall itself never shows in the guest.
  rig.expect_runs_on(kStall / 2);
  rig.expect_nothing_lost(acknowledged_epochs(sidecar));
  rig.expect_exact();
}

TEST(LinkFaults, SlowLinkIsOnlyLag) {
  VMSHADOW_REQUIRE(guest_available({}));
  FaultRig rig;
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  const auto proxy = must(TcpProxy::start(store.port()));
  proxy->set_delay(milliseconds(150));
  SidecarProgram sidecar = rig.protect(proxy->address(), 10);
  // There and back.
  EXPECT_GT(newest_lag_ms(sidecar), 300);
  EXPECT_EQ(must(sidecar.stop()).text(), "exit code 0");
  EXPECT_EQ(sidecar.messages(), "");
  rig.expect_runs_on();
  rig.expect_nothing_lost(acknowledged_epochs(sidecar));
  rig.expect_exact();
}

// Told to stop while the link hangs: the VM is released at once, and what was not acknowledged is
// said.
TEST(LinkFaults, StoppedWhileTheLinkHangsReleasesTheVmAndSaysWhatIsMissing) {
  VMSHADOW_REQUIRE(guest_available({}));
  FaultRig rig;
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  const auto proxy = must(TcpProxy::start(store.port()));
  SidecarProgram sidecar = rig.protect(proxy->address(), 3);
  proxy->stall();
  ::poll(nullptr, 0, 500);
  ASSERT_TRUE(sidecar.process().signal(SIGTERM));
  expect_end(sidecar, 1, {"the store at " + proxy->address() + " has not committed"});
  rig.expect_runs_on();
  rig.expect_nothing_lost(acknowledged_epochs(sidecar));
}

}  // namespace
}  // namespace vmshadow::test
