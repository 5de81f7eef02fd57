// Guests at the ends of the scale: one that writes nothing, one that rewrites all it has without a
// rest, one that dirties pages and leaves them as they were. Each is protected, killed, restored.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "support/prerequisite.h"
#include "support/replication_rig.h"

namespace vmshadow::test {
namespace {

using Json = nlohmann::json;
using std::chrono::milliseconds;
using std::chrono::seconds;

/// What the epochs behind the full pass cost.
struct DeltaCost {
  std::uint64_t epochs{};
  std::uint64_t pages{};
  std::uint64_t pages_most{};  ///< in one epoch
  std::uint64_t unchanged{};
  std::uint64_t raw_bytes{};
  std::uint64_t shipped_bytes{};
};

DeltaCost delta_cost(const SidecarProgram& sidecar) {
  DeltaCost cost;
  for (const Json& line : sidecar.lines()) {
    if (line.value("event", "") != "epoch" || line.at("first_pass").get<bool>()) continue;
    const auto number = [&](const char* key) { return line.at(key).get<std::uint64_t>(); };
    ++cost.epochs;
    cost.pages += number("pages");
    cost.pages_most = std::max(cost.pages_most, number("pages"));
    cost.unchanged += number("unchanged_pages");
    cost.raw_bytes += number("raw_bytes");
    cost.shipped_bytes += number("shipped_bytes");
  }
  return cost;
}

class ExtremesE2e : public testing::Test {
 protected:
  /// Protects a bare guest for `epochs`, kills it, restores the newest epoch, judges.
  void protect_kill_restore(std::vector<std::string> witness, std::uint64_t epochs,
                            milliseconds interval, Accelerator accelerator = Accelerator::automatic,
                            std::uint64_t memory_mib = 0) {
    GuestConfig config;
    config.kind = GuestKind::bare;
    config.accelerator = accelerator;
    config.memory_mib = memory_mib;
    config.witness = std::move(witness);
    VMSHADOW_REQUIRE(guest_available(config));
    const auto begun = system_clock().monotonic();
    const auto seconds_since = [](MonotonicTime then) {
      return std::chrono::duration<double>(system_clock().monotonic() - then).count();
    };
    const auto primary = QemuGuest::start(config);
    ASSERT_TRUE(primary) << primary.error().message;
    const Status up = (*primary)->wait_for_reports(3, io::deadline_after(seconds(120)));
    ASSERT_TRUE(up) << up.error().message;
    const double boot_s = seconds_since(begun);
    const TempDir directory;
    const auto store = StoreProgram::start(directory.file("store"));
    ASSERT_TRUE(store) << store.error().message;
    // These guests write as fast as they can; on a loaded machine their pauses are no sign of a
    // hang.
    auto sidecar = SidecarProgram::start(
        {"vm1", (*primary)->qmp_path(), store->address(), interval, {}, true, seconds(30)});
    ASSERT_TRUE(sidecar) << sidecar.error().message;
    const Status protected_so_far =
        sidecar->wait_for_epochs(epochs + 1, io::deadline_after(seconds(120)));
    ASSERT_TRUE(protected_so_far) << protected_so_far.error().message;

    const double protected_s = seconds_since(begun) - boot_s;
    (*primary)->kill();
    const auto ended = sidecar->process().wait(io::deadline_after(seconds(60)));
    ASSERT_TRUE(ended) << ended.error().message;
    EXPECT_EQ(ended->code, 3) << sidecar->messages();  // the VM is gone
    const auto summary = sidecar->summary();
    ASSERT_TRUE(summary) << sidecar->messages();

    const auto restored = RestoredGuest::restore(store->directory(), "vm1", "latest", **primary);
    ASSERT_TRUE(restored) << restored.error().message;
    EXPECT_EQ((*restored)->epoch().value, summary->at("last_epoch").get<std::uint64_t>());
    const auto verdict = judge(store->directory(), "vm1", (*primary)->witness(), **restored, 10);
    ASSERT_TRUE(verdict) << verdict.error().message << (*restored)->messages();
    EXPECT_TRUE(verdict->continues_exactly()) << verdict->text();

    cost_ = delta_cost(*sidecar);
    RecordProperty("epochs", std::to_string(cost_.epochs));
    RecordProperty("pages", std::to_string(cost_.pages));
    RecordProperty("unchanged_pages", std::to_string(cost_.unchanged));
    RecordProperty("shipped_bytes", std::to_string(cost_.shipped_bytes));
    fmt::print(
        "{} epochs, {} pages ({} at most in one, {} unchanged), {:.1f} MB shipped for "
        "{:.1f} MB; full pass {:.0f} ms (pause {:.0f}); pause p50 {:.2f} p99 {:.2f} ms, lag p50 "
        "{:.0f} p99 {:.0f} ms; boot {:.1f} s, "
        "epochs {:.1f} s, restore {:.1f} s, all {:.1f} s\n",
        cost_.epochs, cost_.pages, cost_.pages_most, cost_.unchanged,
        static_cast<double>(cost_.shipped_bytes) / 1e6, static_cast<double>(cost_.raw_bytes) / 1e6,
        summary->at("full_pass_ms").get<double>(), summary->at("full_pass_pause_ms").get<double>(),
        summary->at("pause_ms_p50").get<double>(), summary->at("pause_ms_p99").get<double>(),
        summary->at("lag_ms_p50").get<double>(), summary->at("lag_ms_p99").get<double>(), boot_s,
        protected_s, static_cast<double>((*restored)->timing().replied.count()) / 1e6,
        seconds_since(begun));
  }

  DeltaCost cost_;
};

TEST_F(ExtremesE2e, AGuestThatWritesNothing) {
  protect_kill_restore({"pages=0"}, 50, milliseconds(20));
  if (IsSkipped() || HasFatalFailure()) return;
  // Its control page, its stack and its device models' rings: a handful a cut.
  EXPECT_LT(cost_.pages, cost_.epochs * 32);
}

constexpr std::uint64_t kGreedyArenaPages = (std::uint64_t{56} << 20) / kPageBytes;
const std::vector<std::string> kGreedy = {"arena_mib=56", "pages=all", "tick_us=0",
                                          "fill_words=16"};

TEST_F(ExtremesE2e, AGuestThatRewritesAllItHasWithoutARest) {
  protect_kill_restore(kGreedy, 30, milliseconds(20));
  if (IsSkipped() || HasFatalFailure()) return;
  EXPECT_GT(cost_.pages, cost_.epochs * 100) << "the guest wrote too little to show anything";
}

// TCG, faster than an emulated processor under KVM: the whole arena, nine tenths of the machine, in
// every epoch.
TEST_F(ExtremesE2e, AGuestThatRewritesAllItHasBetweenTwoCuts) {
  protect_kill_restore(kGreedy, 30, milliseconds(50), Accelerator::tcg);
  if (IsSkipped() || HasFatalFailure()) return;
  EXPECT_GE(cost_.pages_most, kGreedyArenaPages);
}

// More between two of QEMU's passes than it may leave for the last one: by itself the first pass
// would go on for ever.
TEST_F(ExtremesE2e, AGuestThatOutrunsTheFirstPass) {
  protect_kill_restore({"arena_mib=480", "pages=all", "tick_us=0"}, 3, milliseconds(50),
                       Accelerator::tcg, 512);
}

TEST_F(ExtremesE2e, PagesWrittenButNotChangedAreNotShipped) {
  protect_kill_restore({"rewrite_same_percent=100"}, 50, milliseconds(20));
  if (IsSkipped() || HasFatalFailure()) return;
  EXPECT_GT(cost_.unchanged, cost_.pages / 2);
  EXPECT_LT(cost_.shipped_bytes, cost_.raw_bytes / 10);
}

}  // namespace
}  // namespace vmshadow::test
