// Metrics of the real programs, scraped with curl as Prometheus would: they agree with what the
// programs say otherwise, whatever dies or stalls meanwhile.
#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <signal.h>
#include <time.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <list>

#include "support/fault_rig.h"
#include "support/metrics_text.h"
#include "support/prerequisite.h"
#include "support/process_figures.h"

namespace vmshadow::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::HasSubstr;
using Json = nlohmann::json;

/// What curl gets; an error if it gets nothing within 10 s.
Result<std::string> fetch(const std::string& url) {
  VMSHADOW_ASSIGN(const Ran ran, run_program({"curl", "--silent", "--show-error", "--fail",
                                              "--max-time", "10", url}));
  if (!ran.status.success()) return fail(Errc::closed, ran.err);
  return ran.out;
}
Status curl_available() {
  const auto ran = run_program({"curl", "--version"});
  if (ran && ran->status.success()) return {};
  return fail(Errc::not_found, "curl is not installed (tools/setup does)");
}
MetricsText scrape(const std::string& url) { return MetricsText(must(fetch(url))); }

SidecarConfig with_metrics(const FaultRig& rig, const StoreProgram& store) {
  SidecarConfig config = rig.config(store.address());
  config.extra_args = {"--metrics", "0"};
  config.once = false;
  return config;
}

std::string url_of(const SidecarProgram& sidecar) {
  std::string url;
  wait_until([&] {
    for (const Json& line : sidecar.lines()) {
      if (line.value("event", "") == "metrics") url = line.at("url").get<std::string>();
    }
    return !url.empty();
  });
  return url;
}

/// In "metrics at http://127.0.0.1:PORT/metrics".
std::string url_in(const std::function<std::string()>& said) {
  std::string url;
  wait_until([&] {
    const std::string text = said();
    const std::size_t at = text.find("metrics at http://");
    if (at == std::string::npos || text.find('\n', at) == std::string::npos) return false;
    url = text.substr(at + 11, text.find('\n', at) - at - 11);
    return true;
  });
  return url;
}
std::string url_of(const StoreProgram& store) {
  return url_in([&] { return store.messages(); });
}

std::vector<Json> epoch_lines(const SidecarProgram& sidecar) {
  std::vector<Json> epochs;
  for (const Json& line : sidecar.lines()) {
    if (line.value("event", "") == "epoch") epochs.push_back(line);
  }
  return epochs;
}

/// Between two epochs: what a scrape reads is not of one instant.
MetricsText scrape_between_epochs(const SidecarProgram& sidecar) {
  const std::string url = url_of(sidecar);
  std::string page;
  wait_until([&] {
    const std::size_t before = epoch_lines(sidecar).size();
    page = must(fetch(url));
    return epoch_lines(sidecar).size() == before &&
           MetricsText(page).value("vmshadow_epochs_committed_total") ==
               static_cast<double>(before);
  });
  return MetricsText(page);
}

/// That a scrape which saw `n` epochs has the sums of the first `n` lines.
void expect_agrees(const MetricsText& metrics, const std::vector<Json>& epochs) {
  const auto n = static_cast<std::size_t>(metrics.value("vmshadow_epochs_committed_total"));
  ASSERT_LE(n, epochs.size());
  ASSERT_GT(n, 0U);
  EXPECT_EQ(metrics.value("vmshadow_committed_epoch"), epochs[n - 1].at("epoch").get<double>());
  double raw = 0;
  double shipped = 0;
  double device = 0;
  double unchanged = 0;
  double pauses = 0;
  double pause_ms = 0;
  double ram_ms = 0;
  double commit_ms = 0;
  for (std::size_t i = 0; i < n; ++i) {
    raw += epochs[i].at("raw_bytes").get<double>();
    shipped += epochs[i].at("shipped_bytes").get<double>();
    device += epochs[i].at("device_bytes").get<double>();
    unchanged += epochs[i].at("unchanged_pages").get<double>();
    if (epochs[i].at("first_pass").get<bool>()) continue;
    commit_ms += epochs[i].at("commit_ms").get<double>();
    if (epochs[i].at("pause_ms").is_null()) continue;
    ++pauses;
    pause_ms += epochs[i].at("pause_ms").get<double>();
    ram_ms += epochs[i].at("ram_ms").get<double>();
  }
  EXPECT_EQ(metrics.value("vmshadow_raw_bytes_total"), raw);
  EXPECT_EQ(metrics.value("vmshadow_shipped_bytes_total"), shipped);
  EXPECT_EQ(metrics.value("vmshadow_device_bytes_total"), device);
  EXPECT_EQ(metrics.value("vmshadow_pages_total", {{"kind", "unchanged"}}), unchanged);
  EXPECT_EQ(metrics.value("vmshadow_pause_seconds_count"), pauses);
  EXPECT_NEAR(metrics.value("vmshadow_pause_seconds_sum") * 1000, pause_ms, 0.01);
  EXPECT_EQ(metrics.value("vmshadow_epoch_phase_seconds_count", {{"phase", "ram"}}), pauses);
  EXPECT_NEAR(metrics.value("vmshadow_epoch_phase_seconds_sum", {{"phase", "ram"}}) * 1000, ram_ms,
              0.01);
  EXPECT_NEAR(metrics.value("vmshadow_commit_seconds_sum") * 1000, commit_ms, 0.01);
}

TEST(MetricsE2e, ASidecarsAgreeWithItsReport) {
  VMSHADOW_REQUIRE(guest_available({}));
  VMSHADOW_REQUIRE(curl_available());
  FaultRig rig;
  StoreProgram store = must(StoreProgram::start(rig.store_directory(), {"--metrics", "0"}));
  SidecarConfig config = with_metrics(rig, store);
  config.interval = milliseconds(500);  // so that a scrape is between two epochs, mostly
  SidecarProgram sidecar = must(SidecarProgram::start(config));
  must(sidecar.wait_for_epochs(4, io::deadline_after(kFaultPatience)));
  const MetricsText metrics = scrape_between_epochs(sidecar);
  expect_agrees(metrics, epoch_lines(sidecar));
  EXPECT_EQ(metrics.value("vmshadow_protected", {{"vm", "vm1"}}), 1);
  EXPECT_EQ(metrics.value("vmshadow_source", {{"source", "colo"}}), 1);
  EXPECT_EQ(metrics.value("vmshadow_first_passes_total"), 1);
  EXPECT_LT(metrics.value("vmshadow_lag_seconds"), 5);
  EXPECT_NEAR(metrics.value("vmshadow_committed_cut_timestamp_seconds"),
              static_cast<double>(system_clock().wall().ns) / 1e9, 5);
  EXPECT_DOUBLE_EQ(metrics.value("vmshadow_epoch_interval_seconds"), 0.5);
  EXPECT_EQ(metrics.value("vmshadow_worker_restarts_total"), 0);

  // The store's, against the sidecar's.
  EXPECT_EQ(must(sidecar.stop()).text(), "exit code 0") << sidecar.messages();
  wait_until([&] { return scrape(url_of(store)).value("vmshadow_store_sessions") == 0; });
  const MetricsText kept = scrape(url_of(store));
  const auto epochs = epoch_lines(sidecar);
  EXPECT_EQ(kept.value("vmshadow_store_epochs_committed_total"),
            static_cast<double>(epochs.size()));
  EXPECT_EQ(kept.value("vmshadow_store_commit_seconds_count"), static_cast<double>(epochs.size()));
  EXPECT_EQ(kept.value("vmshadow_store_vm_epochs", {{"vm", "vm1"}}),
            static_cast<double>(epochs.size()));
  double shipped = 0;
  for (const Json& line : epochs) shipped += line.at("shipped_bytes").get<double>();
  EXPECT_GE(kept.value("vmshadow_store_ingested_bytes_total"), shipped);
  EXPECT_EQ(kept.value("vmshadow_store_poisoned"), 0);
  EXPECT_EQ(must(store.stop()).text(), "exit code 0");
}

TEST(MetricsE2e, AStoresAgreeWithItsStatus) {
  VMSHADOW_REQUIRE(guest_available({}));
  VMSHADOW_REQUIRE(curl_available());
  FaultRig rig;
  StoreProgram store =
      must(StoreProgram::start(rig.store_directory(), {"--metrics", "127.0.0.1:0"}));
  SidecarProgram sidecar = rig.protect(store.address(), 5);
  EXPECT_EQ(must(sidecar.stop()).text(), "exit code 0") << sidecar.messages();
  const Ran ran = must(run_program(
      {program_path("shadow-replay"), "--store", store.directory(), "status", "--json"}));
  ASSERT_TRUE(ran.status.success()) << ran.err;
  const Json status = Json::parse(ran.out);
  // A page is kept for a second.
  wait_until([&] {
    return scrape(url_of(store)).value("vmshadow_store_vm_epochs", {{"vm", "vm1"}}) ==
           status.at("epochs").get<double>();
  });
  const MetricsText metrics = scrape(url_of(store));
  const Json& usage = status.at("usage").at(0);
  EXPECT_EQ(metrics.value("vmshadow_store_vm_bytes", {{"vm", "vm1"}}),
            usage.at("live_bytes").get<double>());
  EXPECT_EQ(metrics.value("vmshadow_store_ingested_bytes_total"),
            status.at("ingested_bytes").get<double>());
  EXPECT_EQ(metrics.value("vmshadow_store_segments", {{"kind", "journal"}}),
            status.at("journal_segments").get<double>());
  EXPECT_EQ(must(store.stop()).text(), "exit code 0");
}

// The port belongs to none of the two that die: it answers while there is no worker, and what was
// counted stays.
TEST(MetricsE2e, AWorkerThatIsKilledTakesNoMetricsWithIt) {
  VMSHADOW_REQUIRE(guest_available({}));
  VMSHADOW_REQUIRE(curl_available());
  FaultRig rig;
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  SidecarConfig config = with_metrics(rig, store);
  config.interval = milliseconds(500);
  SidecarProgram sidecar = must(SidecarProgram::start(config));
  const std::string url = url_of(sidecar);
  must(sidecar.wait_for_epochs(3, io::deadline_after(kFaultPatience)));
  const double epochs = scrape(url).value("vmshadow_epochs_committed_total");
  EXPECT_GE(epochs, 3);
  ::kill(must(sidecar.worker_pid()), SIGKILL);
  wait_until([&] { return scrape(url).value("vmshadow_protected") == 0; });
  const double lag = scrape(url).value("vmshadow_lag_seconds");
  wait_until([&] { return sidecar.attachments() == 2; });
  wait_until([&] { return scrape(url).value("vmshadow_protected") == 1; });
  const MetricsText metrics = scrape_between_epochs(sidecar);
  EXPECT_GT(metrics.value("vmshadow_epochs_committed_total"), epochs);
  EXPECT_EQ(metrics.value("vmshadow_worker_restarts_total"), 1);
  EXPECT_EQ(metrics.value("vmshadow_first_passes_total"), 2);
  EXPECT_EQ(metrics.value("vmshadow_guard_kills_total", {{"reason", "pause_deadline"}}), 0);
  EXPECT_EQ(metrics.value("vmshadow_generation"), 2);
  EXPECT_GT(lag, 0);
  expect_agrees(metrics, epoch_lines(sidecar));

  // Nor does the metrics process take anything with it.
  ::kill(must(sidecar.metrics_pid()), SIGKILL);
  must(sidecar.wait_for_epochs(sidecar.epochs() + 3, io::deadline_after(kFaultPatience)));
  EXPECT_FALSE(fetch(url));
  EXPECT_EQ(must(sidecar.stop()).text(), "exit code 0") << sidecar.messages();
  rig.expect_runs_on(seconds(10));
}

TEST(MetricsE2e, AGuardThatKillsAWorkerCountsIt) {
  VMSHADOW_REQUIRE(guest_available({}));
  VMSHADOW_REQUIRE(curl_available());
  FaultRig rig({}, busy_witness());
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  SidecarConfig config = with_metrics(rig, store);
  config.pause_deadline = milliseconds(1000);
  SidecarProgram sidecar = must(SidecarProgram::start(config));
  must(sidecar.wait_for_epochs(2, io::deadline_after(kFaultPatience)));
  ::kill(must(sidecar.worker_pid()), SIGSTOP);
  // "stopped" or "pause_deadline": wherever it was.
  const std::string url = url_of(sidecar);
  const auto kills = [&] {
    const MetricsText metrics = scrape(url);
    return metrics.value("vmshadow_guard_kills_total", {{"reason", "stopped"}}) +
           metrics.value("vmshadow_guard_kills_total", {{"reason", "pause_deadline"}});
  };
  wait_until([&] { return kills() == 1; });
  wait_until([&] { return scrape(url).value("vmshadow_guard_releases_total") == 1; });
  EXPECT_EQ(must(sidecar.stop()).text(), "exit code 0") << sidecar.messages();
  rig.expect_runs_on(seconds(10));
}

TEST(MetricsE2e, PeersThatSayNothingKeepNobodyOut) {
  VMSHADOW_REQUIRE(guest_available({}));
  VMSHADOW_REQUIRE(curl_available());
  FaultRig rig;
  StoreProgram store = must(StoreProgram::start(rig.store_directory(), {"--metrics", "0"}));
  SidecarProgram sidecar = must(SidecarProgram::start(with_metrics(rig, store)));
  must(sidecar.wait_for_epochs(2, io::deadline_after(kFaultPatience)));
  std::list<UniqueFd> silent;
  for (const std::string& url : {url_of(sidecar), url_of(store)}) {
    const std::string host_and_port = url.substr(7, url.find('/', 7) - 7);
    const auto address = must(io::parse_tcp_address(host_and_port));
    for (int i = 0; i < 200; ++i) {
      silent.push_back(must(io::connect_tcp(address, io::deadline_after(kFaultPatience))));
    }
    must(sidecar.wait_for_epochs(sidecar.epochs() + 3, io::deadline_after(kFaultPatience)));
    EXPECT_THAT(must(fetch(url)), HasSubstr("vmshadow_build_info"));
  }
  EXPECT_EQ(must(sidecar.stop()).text(), "exit code 0") << sidecar.messages();
  EXPECT_EQ(must(store.stop()).text(), "exit code 0");
}

// The VM goes before its metrics: one that a killed sidecar has left standing still is released,
// and protected, though the port cannot be had.
TEST(MetricsE2e, APortThatIsTakenKeepsNoVmWaiting) {
  VMSHADOW_REQUIRE(guest_available({}));
  FaultRig rig({}, busy_witness());
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  {
    SidecarProgram first = rig.protect(store.address(), 2, milliseconds(5));
    const pid_t worker = must(first.worker_pid());
    const auto observer = rig.observer();
    ASSERT_TRUE(halt_at_the_cut(*observer, worker));
    kill_both(first, worker);
  }
  const auto taken = must(io::listen_tcp({"127.0.0.1", 0}));
  const std::string port = std::to_string(must(io::local_port(taken.get())));
  SidecarConfig config = rig.config(store.address());
  config.extra_args = {"--metrics", port, "--metrics-file", rig.path("none/vm1.prom")};
  SidecarProgram sidecar = must(SidecarProgram::start(config));
  must(sidecar.wait_for_epochs(3, io::deadline_after(kFaultPatience)));
  EXPECT_THAT(sidecar.messages(), HasSubstr("it was released, it runs"));
  EXPECT_THAT(sidecar.messages(), HasSubstr("--metrics: listening on 127.0.0.1:" + port));
  EXPECT_THAT(sidecar.messages(), HasSubstr("end what listens there, or choose another port"));
  EXPECT_THAT(sidecar.messages(), HasSubstr("writing the metrics file"));
  EXPECT_EQ(must(sidecar.stop()).text(), "exit code 0") << sidecar.messages();
  rig.expect_runs_on(seconds(30));
}

TEST(MetricsE2e, AStoreWhosePortIsTakenIsAStoreAllTheSame) {
  const TempDir folder;
  const auto taken = must(io::listen_tcp({"127.0.0.1", 0}));
  const std::string port = std::to_string(must(io::local_port(taken.get())));
  StoreProgram store = must(StoreProgram::start(folder.file("store"), {"--metrics", port}));
  wait_until([&] { return store.messages().find("choose another port") != std::string::npos; });
  EXPECT_THAT(store.messages(), HasSubstr("--metrics: listening on 127.0.0.1:" + port));
  EXPECT_EQ(must(store.stop()).text(), "exit code 0");
}

// Known before a store is opened, or a VM touched.
TEST(MetricsE2e, WhatIsNoAddressIsAMistakeOfUsage) {
  const TempDir folder;
  const Ran sidecar =
      must(run_program({program_path("vmshadow-sidecar"), "--vm", "vm1", "--qmp",
                        folder.file("qmp"), "--store", "127.0.0.1:1", "--metrics", "all"}));
  EXPECT_EQ(sidecar.status.code, 2);
  expect_sentence(sidecar.err, "vmshadow-sidecar", {"--metrics: 'all' is not [ADDRESS:]PORT"});
  const Ran store = must(run_program({program_path("vmshadow-store"), "--dir", folder.file("store"),
                                      "--listen", "127.0.0.1:0", "--metrics", "all"}));
  EXPECT_EQ(store.status.code, 2);
  expect_sentence(store.err, "vmshadow-store", {"--metrics: 'all' is not [ADDRESS:]PORT"});
  EXPECT_FALSE(std::filesystem::exists(folder.file("store")));
}

TEST(MetricsE2e, TheFileIsThereWhileTheSidecarIs) {
  VMSHADOW_REQUIRE(guest_available({}));
  FaultRig rig;
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  SidecarConfig config = rig.config(store.address());
  const std::string path = rig.path("vm1.prom");
  config.extra_args = {"--metrics-file", path};
  SidecarProgram sidecar = must(SidecarProgram::start(config));
  wait_until([&] { return std::filesystem::exists(path); });
  wait_until([&] {
    std::ifstream file(path);
    const MetricsText text(std::string(std::istreambuf_iterator<char>(file), {}));
    return text.value("vmshadow_protected") == 1;
  });
  EXPECT_EQ(must(sidecar.stop()).text(), "exit code 0") << sidecar.messages();
  EXPECT_FALSE(std::filesystem::exists(path));
}

// A file that stays behind would say for ever that the VM is protected.
TEST(MetricsE2e, TheFileGoesWithASidecarThatIsKilled) {
  VMSHADOW_REQUIRE(guest_available({}));
  FaultRig rig;
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  SidecarConfig config = rig.config(store.address());
  const std::string path = rig.path("vm1.prom");
  config.extra_args = {"--metrics-file", path};
  SidecarProgram sidecar = must(SidecarProgram::start(config));
  // The file is there first.
  wait_until([&] { return std::filesystem::exists(path) && sidecar.worker_pid(); });
  kill_both(sidecar, must(sidecar.worker_pid()));
  wait_until([&] { return !std::filesystem::exists(path); });
}

// Descriptors 0 to 2 are free then: neither metrics nor a monitor may get them, nor words of ours
// go where they lead.
TEST(MetricsE2e, ASidecarWithoutStandardStreamsProtectsAndServes) {
  VMSHADOW_REQUIRE(guest_available({}));
  FaultRig rig;
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  const std::string path = rig.path("vm1.prom");
  ProcessOptions options;
  options.argv = {"sh",
                  "-c",
                  R"(exec "$@" <&- >&- 2>&-)",
                  "sh",
                  program_path("vmshadow-sidecar"),
                  "--vm",
                  "vm1",
                  "--qmp",
                  rig.guest().qmp_path(),
                  "--store",
                  store.address(),
                  "--json",
                  "--metrics",
                  "0",
                  "--metrics-file",
                  path};
  Process sidecar = must(Process::spawn(options));
  wait_until([&] { return stored_epochs(rig.store_directory(), "vm1").size() >= 5; });
  EXPECT_TRUE(std::filesystem::exists(path));
  const pid_t metrics = must(sidecar_child(sidecar.pid(), SidecarChild::metrics));
  ::poll(nullptr, 0, 1000);
  clockid_t clock{};
  timespec used{};
  ASSERT_EQ(::clock_getcpuclockid(metrics, &clock), 0);
  ASSERT_EQ(::clock_gettime(clock, &used), 0);
  EXPECT_LT(used.tv_sec * 1000 + used.tv_nsec / 1'000'000, 200) << "ms: it is to wait, not to spin";
  must(sidecar.signal(SIGTERM));
  EXPECT_EQ(must(sidecar.wait(io::deadline_after(kFaultPatience))).text(), "exit code 0");
  rig.expect_runs_on();
}

/// Resident memory that no other process shares, in KiB.
std::uint64_t own_kib(pid_t pid) {
  std::ifstream lines(fmt::format("/proc/{}/smaps_rollup", pid));
  std::uint64_t own = 0;
  for (std::string word; lines >> word;) {
    std::uint64_t kib = 0;
    if ((word == "Private_Clean:" || word == "Private_Dirty:") && lines >> kib) own += kib;
  }
  return own;
}

// All three are within what a sidecar may have (SidecarMemory has the same of two, under load).
TEST(MetricsE2e, TheThirdProcessIsSmall) {
  VMSHADOW_REQUIRE(guest_available({}));
  VMSHADOW_REQUIRE(curl_available());
  FaultRig rig;
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  SidecarProgram sidecar = must(SidecarProgram::start(with_metrics(rig, store)));
  must(sidecar.wait_for_epochs(2, io::deadline_after(kFaultPatience)));
  for (int i = 0; i < 20; ++i) static_cast<void>(scrape(url_of(sidecar)));
  const pid_t metrics = must(sidecar.metrics_pid());
  const std::uint64_t third = must(resident_bytes(metrics)).peak;
  const std::uint64_t all = third + must(resident_bytes(sidecar.process().pid())).now +
                            must(resident_bytes(must(sidecar.worker_pid()))).now;
  fmt::print("metrics process: {:.1f} MiB resident, {:.1f} MiB its own; all three {:.1f} MiB\n",
             static_cast<double>(third) / (1 << 20), static_cast<double>(own_kib(metrics)) / 1024,
             static_cast<double>(all) / (1 << 20));
  EXPECT_LE(third, std::uint64_t{16} << 20);
  EXPECT_LE(own_kib(metrics), 2048U);
  EXPECT_LE(all, (std::uint64_t{64} << 20) + guest_memory_kib({}) * 1024 / 50);
  EXPECT_EQ(must(sidecar.stop()).text(), "exit code 0") << sidecar.messages();
}

}  // namespace
}  // namespace vmshadow::test
