// What a sidecar (guard and worker) has of its host's memory: 64 MiB, 2 % of the guest's RAM, and
// the encode window, which is what may wait for the encoder when a cut is asked for and the epoch
// that is then cut (docs/architecture.md). And what a burst took is given back.
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>

#include "support/fault_rig.h"
#include "support/prerequisite.h"
#include "support/process_figures.h"
#include "support/tcp_proxy.h"

namespace vmshadow::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr double kBaseMib = 64;
constexpr double kShareOfGuest = 0.02;
/// ship::ShipperOptions::queued_bytes_max.
constexpr double kMayWaitMib = 64;
constexpr seconds kLinkStalls{8};
constexpr seconds kMemoryPatience{120};
constexpr double kMib = 1 << 20;

/// A guest with 96 MiB that hold something, of which it fills `pages` with noise every 10 ms.
GuestConfig large_guest(unsigned pages) {
  GuestConfig config;
  config.memory_mib = 128;
  config.witness = {"arena_mib=96", "tick_us=10000", fmt::format("pages={}", pages),
                    "fill_words=1000", "report=10"};
  return config;
}

double bound_mib(const GuestConfig& guest) {
  return kBaseMib + kShareOfGuest * static_cast<double>(guest_memory_kib(guest)) / 1024;
}

struct Footprint {
  double now_mib{}, peak_mib{};
};
Footprint footprint_of(SidecarProgram& sidecar) {
  const Resident guard = must(resident_bytes(sidecar.process().pid()));
  const Resident worker = must(resident_bytes(must(sidecar.worker_pid())));
  return {static_cast<double>(guard.now + worker.now) / kMib,
          static_cast<double>(guard.peak + worker.peak) / kMib};
}

/// Without the first pass.
double largest_epoch_mib(const SidecarProgram& sidecar) {
  double largest = 0;
  for (const nlohmann::json& line : sidecar.lines()) {
    if (line.value("event", "") != "epoch" || line.at("first_pass").get<bool>()) continue;
    largest = std::max(largest, line.at("raw_bytes").get<double>() / kMib);
  }
  return largest;
}

// A link that stalls and goes on makes one large epoch among small ones.
TEST(SidecarMemory, OfABurstIsGivenBack) {
  GuestConfig guest = large_guest(25);
  // As below.
  guest.accelerator = Accelerator::tcg;
  VMSHADOW_REQUIRE(guest_available(guest));
  FaultRig rig(guest);
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  const auto proxy = must(TcpProxy::start(store.port()));
  SidecarProgram sidecar = rig.protect(proxy->address(), 3, milliseconds(20));
  // How much the guest writes meanwhile depends on what else the host does.
  double epoch = 0;
  for (milliseconds stalls = kLinkStalls; epoch <= 40 && stalls <= 8 * kLinkStalls; stalls *= 2) {
    proxy->stall();
    ::poll(nullptr, 0, static_cast<int>(stalls.count()));
    proxy->go_on();
    must(sidecar.wait_for_epochs(sidecar.epochs() + 100, io::deadline_after(kMemoryPatience)));
    epoch = largest_epoch_mib(sidecar);
  }
  const Footprint footprint = footprint_of(sidecar);
  fmt::print("after an epoch of {:.0f} MiB: {:.0f} MiB now, {:.0f} at its peak\n", epoch,
             footprint.now_mib, footprint.peak_mib);
  EXPECT_GT(epoch, 40) << "the guest did not write enough meanwhile";
  EXPECT_LE(footprint.peak_mib, bound_mib(guest) + kMayWaitMib + epoch);
  // Nothing waits any more; what is left is well below what it may be without a window.
  EXPECT_LE(footprint.now_mib, bound_mib(guest) * 2 / 3);
  EXPECT_EQ(must(sidecar.stop()).text(), "exit code 0") << sidecar.messages();
}

// The worst there is: large epochs, and nothing leaves. It all waits, up to the limit and one epoch
// more, and no further.
TEST(SidecarMemory, BehindAStalledLinkIsTheEncodeWindow) {
  GuestConfig guest = large_guest(120);
  // A KVM that emulates the guest's instructions one by one writes too little in an interval.
  guest.accelerator = Accelerator::tcg;
  VMSHADOW_REQUIRE(guest_available(guest));
  FaultRig rig(guest);
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  const auto proxy = must(TcpProxy::start(store.port()));
  SidecarConfig config = rig.config(proxy->address());
  config.interval = milliseconds(1500);
  SidecarProgram sidecar = must(SidecarProgram::start(config));
  must(sidecar.wait_for_epochs(3, io::deadline_after(kMemoryPatience)));
  proxy->stall();
  // Until more waits than the limit: how soon that is depends on how fast the host emulates.
  const io::Deadline filled = io::deadline_after(kMemoryPatience);
  Footprint stalled = footprint_of(sidecar);
  while (stalled.now_mib <= kMayWaitMib && std::chrono::steady_clock::now() < filled) {
    ::poll(nullptr, 0, 100);
    stalled = footprint_of(sidecar);
  }
  // And then a while more, in which it must not grow on.
  ::poll(nullptr, 0, static_cast<int>(milliseconds(kLinkStalls).count()));
  stalled = footprint_of(sidecar);
  proxy->go_on();
  must(sidecar.wait_for_epochs(sidecar.epochs() + 3, io::deadline_after(kMemoryPatience)));
  const double epoch = largest_epoch_mib(sidecar);
  const double bound = bound_mib(guest) + kMayWaitMib + epoch;
  const Footprint footprint = footprint_of(sidecar);
  fmt::print(
      "epochs of {:.0f} MiB: {:.0f} MiB behind a stalled link, {:.0f} at its peak of {:.0f}, "
      "{:.0f} once it goes on\n",
      epoch, stalled.now_mib, footprint.peak_mib, bound, footprint.now_mib);
  EXPECT_GT(stalled.now_mib, kMayWaitMib) << "the link was not stalled for long enough";
  EXPECT_LE(footprint.peak_mib, bound);
  EXPECT_EQ(must(sidecar.stop()).text(), "exit code 0") << sidecar.messages();
}

}  // namespace
}  // namespace vmshadow::test
