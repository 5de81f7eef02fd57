// What the sidecar says of its epochs: one JSON line each, a summary, whichever of capture and
// store reports first.
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <string>
#include <vector>

#include "app/epoch_ledger.h"

namespace vmshadow::app {
namespace {

using Json = nlohmann::json;
using std::chrono::microseconds;

/// A FILE that ends up in a string.
class TextFile {
 public:
  TextFile() : file_(::open_memstream(&text_, &bytes_)) {}
  ~TextFile() {
    std::fclose(file_);
    std::free(text_);  // NOLINT(cppcoreguidelines-no-malloc): open_memstream's contract
  }
  TextFile(const TextFile&) = delete;
  TextFile& operator=(const TextFile&) = delete;
  [[nodiscard]] std::FILE* get() const { return file_; }
  [[nodiscard]] std::string text() const {
    std::fflush(file_);
    return {text_, bytes_};
  }
  [[nodiscard]] std::vector<Json> lines(const std::string& event) const {
    std::vector<Json> found;
    std::istringstream all(text());
    for (std::string line; std::getline(all, line);) {
      Json json = Json::parse(line);
      if (json.at("event") == event) found.push_back(std::move(json));
    }
    return found;
  }

 private:
  char* text_ = nullptr;
  std::size_t bytes_ = 0;
  std::FILE* file_;
};

EpochStats taken(std::uint64_t epoch, microseconds pause) {
  EpochStats stats;
  stats.epoch = Epoch{epoch};
  stats.pages = 100;
  stats.pause = pause;
  stats.request = microseconds(50);
  stats.stop = microseconds(10);
  stats.cut = microseconds(20);
  stats.ram = pause - microseconds(60);
  stats.device = microseconds(30);
  stats.resume = microseconds(10);
  return stats;
}

ship::CommittedEpoch committed(std::uint64_t epoch, microseconds latency) {
  ship::CommittedEpoch done;
  done.epoch = Epoch{epoch};
  done.commit_latency = latency;
  done.peak_lag = 2 * latency;
  done.encoded.captured_pages = 100;
  return done;
}

TEST(EpochLedger, EachEpochIsALineWithItsPhases) {
  const TextFile out;
  SidecarFigures figures;
  EpochLedger ledger(ReportStyle::json_lines, out.get(), figures);
  ledger.taken(taken(0, microseconds(9000)));
  ledger.committed(committed(0, microseconds(70000)));
  ledger.committed(committed(1, microseconds(4000)));  // the store was faster
  EXPECT_EQ(out.lines("epoch").size(), 1U);
  ledger.taken(taken(1, microseconds(1000)));
  const auto lines = out.lines("epoch");
  ASSERT_EQ(lines.size(), 2U);
  EXPECT_TRUE(lines[0].at("first_pass").get<bool>());
  EXPECT_FALSE(lines[1].at("first_pass").get<bool>());
  const std::vector<std::pair<const char*, double>> expected = {
      {"pause_ms", 1.0},   {"request_ms", 0.05}, {"stop_ms", 0.01},
      {"cut_ms", 0.02},    {"ram_ms", 0.94},     {"device_ms", 0.03},
      {"resume_ms", 0.01}, {"commit_ms", 4.0},   {"lag_ms", 8.0}};
  for (const auto& [key, value] : expected) {
    EXPECT_DOUBLE_EQ(lines[1].at(key).get<double>(), value) << key;
  }
}

TEST(EpochLedger, TheSummaryCountsThePhasesOfKnownPausesWithoutTheFullPass) {
  const TextFile out;
  SidecarFigures figures;
  EpochLedger ledger(ReportStyle::json_lines, out.get(), figures);
  for (std::uint64_t epoch = 0; epoch <= 100; ++epoch) {
    EpochStats stats = taken(epoch, microseconds(1000 * (epoch + 1)));
    if (epoch == 50) stats.pause.reset();  // its events were lost
    ledger.taken(stats);
    ledger.committed(committed(epoch, microseconds(2000)));
  }
  ledger.print_summary(microseconds(5));
  const auto summaries = out.lines("summary");
  ASSERT_EQ(summaries.size(), 1U);
  const Json& summary = summaries.front();
  EXPECT_EQ(summary.at("epochs"), 101);
  EXPECT_EQ(summary.at("pauses"), 99);
  EXPECT_NEAR(summary.at("pause_ms_p50").get<double>(), 52, 0.5);
  EXPECT_DOUBLE_EQ(summary.at("pause_ms_max").get<double>(), 101);
  EXPECT_DOUBLE_EQ(summary.at("full_pass_pause_ms").get<double>(), 1);
  for (const char* phase : {"request", "stop", "cut", "ram", "device", "resume"}) {
    const Json& spread = summary.at("phases").at(phase);
    EXPECT_EQ(spread.at("count"), 99) << phase;
    EXPECT_LE(spread.at("p50_ms").get<double>(), spread.at("p99_ms").get<double>()) << phase;
    EXPECT_LE(spread.at("p99_ms").get<double>(), spread.at("max_ms").get<double>()) << phase;
  }
  EXPECT_NEAR(summary.at("phases").at("ram").at("p99_ms").get<double>(), 99.9, 1);
}

TEST(EpochLedger, TheSummaryForPeopleNamesThePhases) {
  const TextFile out;
  SidecarFigures figures;
  EpochLedger ledger(ReportStyle::terminal, out.get(), figures);
  for (std::uint64_t epoch = 0; epoch < 3; ++epoch) {
    ledger.taken(taken(epoch, microseconds(1000)));
    ledger.committed(committed(epoch, microseconds(2000)));
  }
  ledger.print_summary(std::nullopt);
  EXPECT_NE(out.text().find("phases of an epoch, p50/p99 ms: request 0.05/0.05, stop 0.01/0.01, "
                            "cut 0.02/0.02, ram 0.94/0.94, device 0.03/0.03, resume 0.01/0.01"),
            std::string::npos)
      << out.text();
}

}  // namespace
}  // namespace vmshadow::app
