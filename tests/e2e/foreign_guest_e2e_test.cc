// A guest that knows nothing of us: a distribution's own kernel and initramfs, with devices that
// only QEMU knows. Protected, killed and restored time after time, each restored machine protected
// in its turn, it must go on answering as one and the same machine.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <memory>

#include "support/guest_shell.h"
#include "support/prerequisite.h"
#include "support/replication_rig.h"

namespace vmshadow::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr unsigned kFailovers = 5;
constexpr std::size_t kEpochsEach = 5;
constexpr seconds kForeignBootWithin{180};
constexpr seconds kAnswerWithin{60};
constexpr const char* kVm = "foreign";
constexpr const char* kDevices = "cat /proc/bus/pci/devices";

/// The machine of the moment: booted, later restored.
struct Machine {
  Console* console;
  std::string qmp_path;
  GuestPlaces places;
};

Result<std::string> ask(Console& console, const std::string& command) {
  return run_in_shell(console, command, io::deadline_after(kAnswerWithin));
}

double uptime_of(Console& console) {
  const auto text = ask(console, "cat /proc/uptime");
  if (!text) {
    ADD_FAILURE() << text.error().message;
    return 0;
  }
  return std::strtod(text->c_str(), nullptr);
}

/// The gateway QEMU itself plays: it answers through the virtio rings.
Status bring_network_up(Console& console) {
  VMSHADOW_TRY(ask(console, "N=$(ls /sys/class/net | grep -v lo)"));
  VMSHADOW_TRY(ask(console, "ip link set $N up && ip addr add 10.0.2.15/24 dev $N"));
  VMSHADOW_TRY(ask(console, "ping -c 1 -w 30 10.0.2.2"));
  return {};
}

/// Everything that must have survived `failovers` of them.
void expect_the_same_machine(Console& console, unsigned failovers, const std::string& devices) {
  const auto sum = ask(console, fmt::format("echo $((1000003 * {} + 17))", failovers + 7));
  ASSERT_TRUE(sum) << sum.error().message;
  EXPECT_EQ(*sum, fmt::format("{}\n", 1000003 * (failovers + 7) + 17));
  const auto held = ask(console, "cat /run/before");
  ASSERT_TRUE(held) << held.error().message;
  EXPECT_EQ(*held, "written before the first kill\n");
  std::string rounds;
  for (unsigned i = 0; i < failovers; ++i) rounds += fmt::format("round {}\n", i);
  const auto kept = ask(console, "cat /run/rounds");
  ASSERT_TRUE(kept) << kept.error().message;
  EXPECT_EQ(*kept, rounds);
  const auto seen = ask(console, kDevices);
  ASSERT_TRUE(seen) << seen.error().message;
  EXPECT_EQ(*seen, devices);
  const auto reached = ask(console, "ping -c 3 -w 30 10.0.2.2");
  EXPECT_TRUE(reached) << reached.error().message;
  const auto faults =
      ask(console, "dmesg | grep -E 'BUG: unable|BUG: Bad|Oops|general protection' || true");
  ASSERT_TRUE(faults) << faults.error().message;
  EXPECT_EQ(*faults, "");
}

TEST(ForeignGuestE2e, FiveFailoversInARow) {
  GuestConfig config;
  config.kind = GuestKind::foreign;
  VMSHADOW_REQUIRE(guest_available(config));
  const auto original = QemuGuest::start(config);
  ASSERT_TRUE(original) << original.error().message;
  const Status up = (*original)->wait_for_shell(io::deadline_after(kForeignBootWithin));
  ASSERT_TRUE(up) << up.error().message;
  const TempDir directory;
  const auto store = StoreProgram::start(directory.file("store"));
  ASSERT_TRUE(store) << store.error().message;

  Machine machine{&(*original)->console(), (*original)->qmp_path(), (*original)->places()};
  ASSERT_TRUE(ask(*machine.console, "echo written before the first kill >/run/before"));
  ASSERT_TRUE(ask(*machine.console, ": >/run/rounds"));
  const Status network = bring_network_up(*machine.console);
  ASSERT_TRUE(network) << network.error().message;
  const auto devices = ask(*machine.console, kDevices);
  ASSERT_TRUE(devices) << devices.error().message;
  std::unique_ptr<RestoredGuest> restored;

  for (unsigned round = 0; round < kFailovers; ++round) {
    SCOPED_TRACE(fmt::format("failover {}", round));
    auto sidecar =
        SidecarProgram::start({kVm, machine.qmp_path, store->address(), milliseconds(100), {}});
    ASSERT_TRUE(sidecar) << sidecar.error().message;
    Status taken = sidecar->wait_for_epochs(2, io::deadline_after(seconds(120)));
    ASSERT_TRUE(taken) << taken.error().message;
    // Done under protection; then two cuts more, the second of which surely began behind it.
    const auto wrote = ask(*machine.console, fmt::format("echo round {} >>/run/rounds", round));
    ASSERT_TRUE(wrote) << wrote.error().message;
    const double uptime = uptime_of(*machine.console);
    taken =
        sidecar->wait_for_epochs(sidecar->epochs() + kEpochsEach, io::deadline_after(seconds(120)));
    ASSERT_TRUE(taken) << taken.error().message;

    if (restored) {
      restored->kill();
    } else {
      (*original)->kill();
    }
    const auto ended = sidecar->process().wait(io::deadline_after(seconds(60)));
    ASSERT_TRUE(ended) << ended.error().message;
    EXPECT_EQ(ended->code, 3) << sidecar->messages();

    auto next = RestoredGuest::restore(
        {store->directory(), kVm, "latest", machine.places, (*original)->env()});
    ASSERT_TRUE(next) << next.error().message;
    restored = std::move(*next);
    machine = {&restored->console(), restored->qmp_path(), restored->places()};
    EXPECT_EQ(restored->report().at("generation").get<unsigned>(), round + 1);
    const auto summary = sidecar->summary();
    ASSERT_TRUE(summary);
    EXPECT_EQ(restored->epoch().value, summary->at("last_epoch").get<std::uint64_t>());

    expect_the_same_machine(*machine.console, round + 1, *devices);
    const double uptime_after = uptime_of(*machine.console);
    EXPECT_GT(uptime_after, uptime) << "it did not go on from behind the last command";
    if (HasFatalFailure() || HasNonfatalFailure()) {
      FAIL() << restored->console().raw() << restored->messages();
    }
    fmt::print(
        "failover {}: epoch {}, generation {}, command to running {:.0f} ms, pause p50 {:.2f} "
        "p99 {:.2f} ms, guest uptime {:.1f} s\n",
        round + 1, restored->epoch().value, round + 1,
        static_cast<double>(restored->timing().replied.count()) / 1000.0,
        summary->at("pause_ms_p50").get<double>(), summary->at("pause_ms_p99").get<double>(),
        uptime_after);
  }
  testing::Test::RecordProperty("failovers", std::to_string(kFailovers));
}

}  // namespace
}  // namespace vmshadow::test
