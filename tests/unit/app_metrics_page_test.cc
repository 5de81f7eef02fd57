// What the programs export: well-formed, named by Prometheus' conventions, as docs/metrics.md says,
// and of the values they were given.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdio.h>
#include <sys/wait.h>

#include <algorithm>
#include <fstream>
#include <regex>
#include <set>
#include <string>

#include "app/metrics_page.h"
#include "app/sidecar_metrics.h"
#include "app/store_metrics.h"
#include "support/manual_clock.h"
#include "support/metrics_text.h"
#include "support/temp_dir.h"

namespace vmshadow::app {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using test::MetricsText;

const SidecarFacts kFacts{"web-1", milliseconds(300)};

/// Figures of a sidecar of which everything is known.
void fill(SidecarFigures& figures) {
  figures.guard.workers_started = 3;
  figures.guard.worker_lives = true;
  figures.guard.killed[capture::GuardCounts::kOverdue] = 2;
  figures.guard.releases = 2;
  ship::CommittedEpoch epoch;
  epoch.commit_latency = milliseconds(40);
  epoch.peak_lag = milliseconds(240);
  epoch.epoch = Epoch{17};
  epoch.encoded = {100, 60, 10, 30, 5000, false};
  EpochStats stats;
  stats.pause = microseconds(3100);
  stats.ram = microseconds(2000);
  stats.pass = milliseconds(99);
  stats.device_bytes = 700;
  figures.add(stats, epoch, true);
  figures.add(stats, epoch, false);
  stats.pause.reset();
  figures.add(stats, epoch, false);
  epoch.cut = MonotonicTime{4'960'000'000};
  epoch.cut_wall = WallTime{1'700'000'000'000'000'000};
  figures.durable(epoch, 3);
  figures.taken_by = 3;
  PaceReport pace;
  pace.interval = milliseconds(200);
  pace.asked_for = capture::CadenceOptions{};
  pace.cannot_hold = "too much";
  pace.passes = PaceReport::Passes{milliseconds(99), milliseconds(130)};
  figures.paced(pace);
  figures.source = static_cast<int>(capture::CaptureKind::full_pass);
  figures.cpu_pressure_percent = 12.5;
  figures.generation = 4;
  figures.queue_bytes = 4096;
}

std::string full_sidecar_page() {
  SidecarFigures figures;
  fill(figures);
  test::ManualClock clock;
  clock.advance(std::chrono::seconds(6));
  return sidecar_metrics(figures, kFacts, clock);
}

store::StoreStats full_store_stats() {
  store::StoreStats stats;
  stats.tiers = {{"ssd", {"/a"}, 1000, 500, 500, 400, 3}, {"hdd", {"/b"}, 0, 70, 10, 60, 0}};
  stats.vms = {{"web-1", 12, 3456, 0, 1'700'000'000'000'000'000}, {"web-2", 0, 0, 7, 0}};
  DurationBuckets commits;
  commits.add(milliseconds(3));
  stats.commits = commits.counts();
  stats.refused_epochs = 1;
  stats.poisoned = true;
  stats.lost_pages = 9;
  return stats;
}

std::string full_store_page() { return store_metrics(full_store_stats(), 2, test::ManualClock()); }

TEST(MetricsPage, FiguresOfOneNameAreOneFamily) {
  MetricsPage page(MetricsPage::Labels{{"vm", "a\"b\\c"}});
  page.counter("x_total", "What x is.", 1, {{"kind", "a"}});
  page.gauge("y_bytes", "What y is.", 1.5);
  page.counter("x_total", "What x is.", 12345678901234, {{"kind", "b"}});
  EXPECT_EQ(page.text(),
            "# HELP x_total What x is.\n"
            "# TYPE x_total counter\n"
            "x_total{vm=\"a\\\"b\\\\c\",kind=\"a\"} 1\n"
            "x_total{vm=\"a\\\"b\\\\c\",kind=\"b\"} 12345678901234\n"
            "# HELP y_bytes What y is.\n"
            "# TYPE y_bytes gauge\n"
            "y_bytes{vm=\"a\\\"b\\\\c\"} 1.5\n");
}

TEST(MetricsPage, AHistogramIsCumulativeAndInSeconds) {
  DurationBuckets buckets;
  for (const int us : {100, 300, 3000, 9'000'000}) buckets.add(microseconds(us));
  MetricsPage page;
  page.histogram("d_seconds", "What d is.", buckets.counts());
  const MetricsText text(page.text());
  EXPECT_EQ(text.value("d_seconds_bucket", {{"le", "0.00025"}}), 1);
  EXPECT_EQ(text.value("d_seconds_bucket", {{"le", "0.001"}}), 2);
  EXPECT_EQ(text.value("d_seconds_bucket", {{"le", "0.256"}}), 3);
  EXPECT_EQ(text.value("d_seconds_bucket", {{"le", "+Inf"}}), 4);
  EXPECT_EQ(text.value("d_seconds_count"), 4);
  EXPECT_DOUBLE_EQ(text.value("d_seconds_sum"), 9.0034);
}

TEST(Metrics, AreNamedByConvention) {
  static const std::set<std::string> units = {"bytes", "seconds", "ratio", "info"};
  static const std::regex name_form("vmshadow_[a-z]+(_[a-z]+)*");
  // What is counted, rather than measured, is named by its plural or is a state or a number.
  static const std::set<std::string> counted = {
      "vmshadow_protected",       "vmshadow_source",     "vmshadow_target_lag_held",
      "vmshadow_committed_epoch", "vmshadow_generation", "vmshadow_encoder_acceleration",
      "vmshadow_store_poisoned"};
  for (const std::string& page : {full_sidecar_page(), full_store_page()}) {
    const MetricsText text(page);
    for (const auto& [name, family] : text.families()) {
      SCOPED_TRACE(name);
      EXPECT_TRUE(std::regex_match(name, name_form));
      EXPECT_TRUE(family.help.ends_with('.'));
      EXPECT_EQ(family.type == "counter", name.ends_with("_total"));
      if (family.type == "counter" || counted.contains(name)) continue;
      const std::string last = name.substr(name.rfind('_') + 1);
      EXPECT_TRUE(units.contains(last) || last.ends_with('s')) << last;
      if (family.type == "histogram") {
        EXPECT_EQ(last, "seconds");
      }
    }
  }
}

TEST(Metrics, PassPromtool) {
  if (std::system("promtool --version > /dev/null 2>&1") != 0) {  // NOLINT(cert-env33-c)
    GTEST_SKIP()
        << "no promtool here; it is in the package prometheus, which tools/setup does not install, "
           "as it would start a service";
  }
  for (const std::string& page : {full_sidecar_page(), full_store_page()}) {
    const test::TempDir folder;
    std::ofstream(folder.file("page")) << page;
    const std::string command =
        "promtool check metrics < " + folder.file("page") + " > " + folder.file("said") + " 2>&1";
    const int status = std::system(command.c_str());  // NOLINT(cert-env33-c)
    std::ifstream said(folder.file("said"));
    EXPECT_EQ(status, 0) << std::string(std::istreambuf_iterator<char>(said), {});
  }
}

/// Name → type, labels (beside `vm` of the sidecar, and le) and help, of what is exported.
using Listing = std::map<std::string, std::string>;

Listing exported(const std::string& page, const std::string& common) {
  Listing listing;
  const MetricsText text(page);
  for (const auto& [name, family] : text.families()) {
    std::set<std::string> labels;
    for (const auto& sample : family.samples) {
      for (const auto& [label, value] : sample.labels) labels.insert(label);
    }
    labels.erase(common);
    labels.erase("le");
    std::string row = family.type + " |";
    for (const std::string& label : labels) row += " `" + label + "`";
    listing[name] = row + " | " + family.help;
  }
  return listing;
}

/// The rows "| `name` | type | `label` … | help |" below a heading.
Listing documented(const std::string& heading) {
  std::ifstream file(VMSHADOW_SOURCE_ROOT "/docs/metrics.md");
  static const std::regex row(R"(\| `(vmshadow_\w+)` \| (\w+) \|([ `\w]*?) ?\| (.+) \|)");
  Listing listing;
  bool here = false;
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("## ")) here = line == "## " + heading;
    std::smatch match;
    if (!here || !std::regex_match(line, match, row)) continue;
    listing[match[1]] =
        std::string(match[2]) + " |" + std::string(match[3]) + " | " + std::string(match[4]);
  }
  return listing;
}

TEST(Metrics, AreAllInTheDocs) {
  EXPECT_EQ(documented("A sidecar's"), exported(full_sidecar_page(), "vm"));
  EXPECT_EQ(documented("A store's"), exported(full_store_page(), ""));
}

TEST(SidecarMetrics, SayWhatWasCounted) {
  const MetricsText text(full_sidecar_page());
  const auto value = [&](const std::string& name, MetricsText::Labels labels = {}) {
    labels["vm"] = "web-1";
    return text.value(name, labels);
  };
  EXPECT_EQ(value("vmshadow_protected"), 1);
  EXPECT_DOUBLE_EQ(value("vmshadow_lag_seconds"), 1.04);
  EXPECT_EQ(value("vmshadow_committed_epoch"), 17);
  EXPECT_EQ(value("vmshadow_committed_cut_timestamp_seconds"), 1.7e9);
  EXPECT_DOUBLE_EQ(value("vmshadow_as_of_timestamp_seconds"),
                   static_cast<double>(test::ManualClock().wall().ns) / 1e9 + 6);
  EXPECT_EQ(value("vmshadow_generation"), 4);
  EXPECT_EQ(value("vmshadow_source", {{"source", "full-pass"}}), 1);
  EXPECT_EQ(value("vmshadow_source", {{"source", "colo"}}), 0);
  EXPECT_EQ(value("vmshadow_epochs_committed_total"), 3);
  EXPECT_EQ(value("vmshadow_first_passes_total"), 1);
  EXPECT_DOUBLE_EQ(value("vmshadow_first_pass_seconds"), 0.002);
  EXPECT_EQ(value("vmshadow_dirty_pages"), 40);
  EXPECT_EQ(value("vmshadow_pages_total", {{"kind", "data"}}), 90);
  EXPECT_EQ(value("vmshadow_pages_total", {{"kind", "zero"}}), 30);
  EXPECT_EQ(value("vmshadow_pages_total", {{"kind", "unchanged"}}), 180);
  EXPECT_EQ(value("vmshadow_raw_bytes_total"), 300 * 4096);
  EXPECT_EQ(value("vmshadow_shipped_bytes_total"), 15000);
  EXPECT_EQ(value("vmshadow_device_bytes_total"), 2100);
  EXPECT_EQ(value("vmshadow_pause_seconds_count"), 1);
  EXPECT_DOUBLE_EQ(value("vmshadow_pause_seconds_sum"), 0.0031);
  EXPECT_EQ(value("vmshadow_pauses_unknown_total"), 1);
  EXPECT_DOUBLE_EQ(value("vmshadow_epoch_phase_seconds_sum", {{"phase", "ram"}}), 0.002);
  EXPECT_EQ(value("vmshadow_commit_seconds_count"), 2);
  EXPECT_DOUBLE_EQ(value("vmshadow_peak_lag_seconds_sum"), 0.48);
  EXPECT_DOUBLE_EQ(value("vmshadow_pass_seconds_sum"), 0.198);
  EXPECT_DOUBLE_EQ(value("vmshadow_epoch_interval_seconds"), 0.2);
  EXPECT_EQ(value("vmshadow_target_lag_seconds"), 1);
  EXPECT_EQ(value("vmshadow_target_lag_held"), 0);
  EXPECT_DOUBLE_EQ(value("vmshadow_holdable_lag_seconds"), 0.13);
  EXPECT_EQ(value("vmshadow_queue_bytes"), 4096);
  EXPECT_DOUBLE_EQ(value("vmshadow_cpu_pressure_ratio"), 0.125);
  EXPECT_DOUBLE_EQ(value("vmshadow_pause_deadline_seconds"), 0.3);
  EXPECT_EQ(value("vmshadow_worker_restarts_total"), 2);
  EXPECT_EQ(value("vmshadow_guard_kills_total", {{"reason", "pause_deadline"}}), 2);
  EXPECT_EQ(value("vmshadow_guard_kills_total", {{"reason", "silent"}}), 0);
  EXPECT_EQ(value("vmshadow_guard_releases_total"), 2);
}

TEST(SidecarMetrics, AVmIsProtectedByAWorkerThatLivesAndHasCommitted) {
  SidecarFigures figures;
  const test::ManualClock clock;
  const auto is_protected = [&] {
    return MetricsText(sidecar_metrics(figures, kFacts, clock)).value("vmshadow_protected");
  };
  EXPECT_EQ(is_protected(), 0);
  figures.guard.workers_started = 1;
  figures.guard.worker_lives = true;
  EXPECT_EQ(is_protected(), 0) << "it has committed nothing yet";
  figures.durable({}, 1);
  EXPECT_EQ(is_protected(), 0) << "its first epoch is durable, but it takes no others yet";
  figures.taken_by = 1;
  EXPECT_EQ(is_protected(), 1);
  figures.taken_by = 0;
  figures.durable({}, 1);
  EXPECT_EQ(is_protected(), 0) << "it has released the VM, and ships what it still has";
  figures.taken_by = 1;
  figures.guard.worker_lives = false;
  EXPECT_EQ(is_protected(), 0);
  figures.guard.workers_started = 2;
  figures.guard.worker_lives = true;
  EXPECT_EQ(is_protected(), 0) << "the next one has committed nothing yet";
}

// What changes with each scrape, or with the wall clock, would look like a commit.
TEST(SidecarMetrics, TheTimeOfACutStandsStill) {
  SidecarFigures figures;
  fill(figures);
  for (const std::int64_t wall : {1'700'000'000'000'000'000, 1'800'000'000'123'456'789}) {
    EXPECT_EQ(MetricsText(sidecar_metrics(figures, kFacts, test::ManualClock(WallTime{wall})))
                  .value("vmshadow_committed_cut_timestamp_seconds"),
              1.7e9);
  }
}

TEST(SidecarMetrics, WhatIsNotKnownIsNotSaid) {
  const SidecarFigures figures;
  const MetricsText text(sidecar_metrics(figures, kFacts, test::ManualClock()));
  for (const char* name :
       {"vmshadow_lag_seconds", "vmshadow_committed_epoch", "vmshadow_target_lag_seconds",
        "vmshadow_holdable_lag_seconds", "vmshadow_cpu_pressure_ratio", "vmshadow_generation",
        "vmshadow_first_pass_seconds", "vmshadow_dirty_pages", "vmshadow_epoch_interval_seconds"}) {
    EXPECT_FALSE(text.has(name)) << name;
  }
}

TEST(StoreMetrics, SayWhatWasCounted) {
  const MetricsText text(full_store_page());
  EXPECT_EQ(text.value("vmshadow_store_vms"), 2);
  EXPECT_EQ(text.value("vmshadow_store_vm_epochs", {{"vm", "web-1"}}), 12);
  EXPECT_EQ(text.value("vmshadow_store_vm_newest_cut_timestamp_seconds"), 1.7e9);
  EXPECT_EQ(text.value("vmshadow_store_tier_stored_bytes", {{"tier", "ssd"}}), 500);
  EXPECT_EQ(text.value("vmshadow_store_tier_free_bytes", {{"tier", "hdd"}}), 10);
  EXPECT_EQ(text.value("vmshadow_store_tier_live_bytes", {{"tier", "hdd"}}), 60);
  EXPECT_EQ(text.value("vmshadow_store_tier_read_bytes_total", {{"tier", "ssd"}}), 3);
  EXPECT_EQ(text.value("vmshadow_store_epochs_committed_total"), 1);
  EXPECT_EQ(text.value("vmshadow_store_commit_seconds_count"), 1);
  EXPECT_EQ(text.value("vmshadow_store_epochs_refused_total"), 1);
  EXPECT_EQ(text.value("vmshadow_store_poisoned"), 1);
  EXPECT_EQ(text.value("vmshadow_store_damaged_places"), 2);
  EXPECT_EQ(text.value("vmshadow_store_damaged_pages_total", {{"fate", "lost"}}), 9);
}

}  // namespace
}  // namespace vmshadow::app
