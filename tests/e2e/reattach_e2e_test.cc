// A VM that is protected again, after its sidecar or its store ended: what the store has already is
// not shipped again, the generation rises, and each epoch restores exactly.
#include <nlohmann/json.hpp>
#include <signal.h>

#include "support/fault_rig.h"
#include "support/prerequisite.h"

namespace vmshadow::test {
namespace {

using std::chrono::milliseconds;

/// The first JSON line of that event.
nlohmann::json first_line(const SidecarProgram& sidecar, const std::string& event) {
  for (const nlohmann::json& line : sidecar.lines()) {
    if (line.value("event", "") == event) return line;
  }
  ADD_FAILURE() << "no line '" << event << "'";
  return {};
}

/// Its pages of noise grow by 1000 a second, and only those are new between one session and the
/// next.
std::vector<std::string> growing_witness() {
  return {"arena_mib=40", "pages=100", "tick_us=100000", "fill_words=1000", "pattern=sequential"};
}

constexpr milliseconds kInterval{100};
constexpr std::size_t kEpochsToGrow = 40;

TEST(Reattach, ShipsOnlyWhatTheStoreHasNot) {
  VMSHADOW_REQUIRE(guest_available({}));
  FaultRig rig({}, growing_witness());
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  SidecarProgram first = rig.protect(store.address(), kEpochsToGrow, kInterval);
  EXPECT_TRUE(first_line(first, "epoch")["full"]);
  EXPECT_TRUE(first_line(first, "attached")["builds_on"].is_null());
  EXPECT_EQ(must(first.stop()).text(), "exit code 0");
  auto acknowledged = acknowledged_epochs(first);

  // What all of it weighs by now.
  SidecarConfig config = rig.config(store.address());
  config.extra_args.emplace_back("--ship-all");
  SidecarProgram all = must(SidecarProgram::start(config));
  must(all.wait_for_epochs(3, io::deadline_after(kFaultPatience)));
  const nlohmann::json whole = first_line(all, "epoch");
  EXPECT_TRUE(whole["full"]);
  ::kill(must(all.worker_pid()), SIGKILL);
  must(all.process().wait(io::deadline_after(kFaultPatience)));
  acknowledged.merge(acknowledged_epochs(all));

  std::vector<std::uint64_t> firsts;
  // A worker was killed; then the store was, too.
  for (const bool store_too : {false, true}) {
    SCOPED_TRACE(store_too);
    if (store_too) {
      store.process().kill();
      store = must(StoreProgram::start(rig.store_directory()));
    }
    SidecarProgram again = rig.protect(store.address(), 5, kInterval);
    const nlohmann::json attached = first_line(again, "attached");
    const nlohmann::json epoch = first_line(again, "epoch");
    EXPECT_EQ(attached["generation"], store_too ? 4 : 3);
    ASSERT_FALSE(attached["builds_on"].is_null());
    EXPECT_EQ(attached["builds_on"].get<std::uint64_t>() + 1, epoch["epoch"].get<std::uint64_t>());
    EXPECT_FALSE(epoch["full"]);
    EXPECT_GT(epoch["unchanged_pages"].get<std::uint64_t>(),
              epoch["pages"].get<std::uint64_t>() / 2);
    EXPECT_LT(epoch["shipped_bytes"].get<std::uint64_t>(),
              whole["shipped_bytes"].get<std::uint64_t>() / 2);
    EXPECT_EQ(must(again.stop()).text(), "exit code 0");
    acknowledged.merge(acknowledged_epochs(again));
    firsts.push_back(epoch["epoch"].get<std::uint64_t>());
  }
  rig.expect_nothing_lost(acknowledged);
  for (const std::uint64_t epoch : firsts) rig.expect_exact(std::to_string(epoch));
  rig.expect_exact();
}

}  // namespace
}  // namespace vmshadow::test
