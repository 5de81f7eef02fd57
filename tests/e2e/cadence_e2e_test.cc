// The cadence on real guests: one that dirties a lot is not paused for more than its budget, and
// one that dirties little is as close behind as asked for, at no more epochs than that takes.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "base/statistics.h"
#include "support/prerequisite.h"
#include "support/replication_rig.h"

namespace vmshadow::test {
namespace {

using Json = nlohmann::json;
using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::HasSubstr;

struct PacedRun {
  std::vector<Json> epochs;  ///< lines, without the full pass and the first half of the run
  Json cadence;              ///< of the summary
  std::string messages;
};

double sum_of(const std::vector<Json>& lines, const char* key) {
  double sum = 0;
  for (const Json& line : lines) sum += line.at(key).is_null() ? 0 : line.at(key).get<double>();
  return sum;
}
double median_of(const std::vector<Json>& lines, const char* key) {
  std::vector<double> values;
  for (const Json& line : lines) {
    if (!line.at(key).is_null()) values.push_back(line.at(key).get<double>());
  }
  return quantile(values, 0.5);
}

class CadenceE2e : public testing::Test {
 protected:
  /// Protects a bare guest for `epochs` at the cadence that `pace` asks for, and stops in order.
  void run_paced(const std::vector<std::string>& witness, unsigned epochs,
                 std::vector<std::string> pace) {
    GuestConfig config;
    config.witness = witness;
    VMSHADOW_REQUIRE(guest_available(config));
    const auto guest = QemuGuest::start(config);
    ASSERT_TRUE(guest) << guest.error().message;
    const Status up = (*guest)->wait_for_reports(3, io::deadline_after(seconds(120)));
    ASSERT_TRUE(up) << up.error().message;
    const TempDir directory;
    const auto store = StoreProgram::start(directory.file("store"));
    ASSERT_TRUE(store) << store.error().message;
    // On a loaded machine a long pause of a greedy guest is no hang.
    SidecarConfig how;
    how.qmp_path = (*guest)->qmp_path();
    how.store = store->address();
    how.interval = milliseconds(0);
    how.pause_deadline = std::chrono::seconds(30);
    how.extra_args = std::move(pace);
    how.extra_args.insert(how.extra_args.end(), {"--epochs", std::to_string(epochs)});
    auto sidecar = SidecarProgram::start(how);
    ASSERT_TRUE(sidecar) << sidecar.error().message;
    const auto ended = sidecar->process().wait(io::deadline_after(seconds(240)));
    ASSERT_TRUE(ended) << ended.error().message << sidecar->messages();
    ASSERT_TRUE(ended->success()) << ended->text() << ": " << sidecar->messages();
    unsigned seen = 0;
    for (const Json& line : sidecar->lines()) {
      if (line.value("event", "") != "epoch" || line.at("first_pass").get<bool>()) continue;
      if (++seen > epochs / 2) run_.epochs.push_back(line);
    }
    ASSERT_EQ(seen, epochs);
    run_.cadence = sidecar->summary()->at("cadence");
    run_.messages = sidecar->messages();
    fmt::print("interval p50 {:.0f} ms, pause p50 {:.2f} ms, lag p50 {:.0f} ms; {}\n",
               median_of(run_.epochs, "interval_ms"), median_of(run_.epochs, "pause_ms"),
               median_of(run_.epochs, "lag_ms"), run_.cadence.dump());
  }

  PacedRun run_;
};

TEST_F(CadenceE2e, AGuestThatDirtiesALotIsNotPausedBeyondItsBudget) {
  run_paced({"arena_mib=24", "pages=all", "tick_us=0"}, 60,
            {"--target-lag-ms", "50", "--pause-budget", "10"});
  if (IsSkipped() || HasFatalFailure()) return;
  // The target alone would break the budget: else this shows nothing.
  ASSERT_GT(median_of(run_.epochs, "pause_ms"), 0.1 * 50);
  const double share = sum_of(run_.epochs, "pause_ms") / sum_of(run_.epochs, "interval_ms");
  RecordProperty("pause_percent", fmt::format("{:.1f}", share * 100));
  EXPECT_LE(share, 0.11);  // a noisy machine's pauses scatter
  EXPECT_EQ(run_.cadence.at("limit"), "pause_budget");
  EXPECT_FALSE(run_.cadence.at("held").get<bool>());
  EXPECT_THAT(run_.cadence.at("why").get<std::string>(),
              HasSubstr("the target lag of 50 ms cannot be held: an epoch "));
}

TEST_F(CadenceE2e, AGuestThatDirtiesLittleIsAsCloseBehindAsAsked) {
  run_paced({"pages=2", "tick_us=10000"}, 60, {"--target-lag-ms", "300", "--pause-budget", "30"});
  if (IsSkipped() || HasFatalFailure()) return;
  std::size_t held = 0;
  for (const Json& line : run_.epochs) held += line.at("lag_ms").get<double>() <= 300 ? 1 : 0;
  RecordProperty("epochs_within_target", fmt::format("{} of {}", held, run_.epochs.size()));
  EXPECT_GE(held, run_.epochs.size() * 8 / 10);
  EXPECT_LE(median_of(run_.epochs, "lag_ms"), 300);
  EXPECT_GE(median_of(run_.epochs, "lag_ms"), 100) << "more epochs than the target takes";
}

}  // namespace
}  // namespace vmshadow::test
