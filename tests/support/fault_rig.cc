#include "support/fault_rig.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <poll.h>
#include <signal.h>

#include <algorithm>
#include <span>
#include <sstream>
#include <utility>

#include "qmp/commands.h"

namespace vmshadow::test {
namespace {

using std::chrono::seconds;
using ::testing::HasSubstr;

constexpr seconds kPatience{60};
constexpr seconds kVerifyWithin{600};
constexpr std::size_t kReportsAfter = 10;
constexpr int kSamplesMax = 2000;

}  // namespace

std::vector<std::string> sentences(const std::string& text, const std::string& program) {
  std::vector<std::string> found;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with(program + ": ")) found.push_back(line);
  }
  return found;
}

void expect_sentence(const std::string& text, const std::string& program,
                     const std::vector<std::string>& words) {
  EXPECT_EQ(sentences(text, program).size(), 1U) << text;
  for (const std::string& word : words) EXPECT_THAT(text, HasSubstr(word));
}

void expect_end(SidecarProgram& sidecar, int code, const std::vector<std::string>& words) {
  const ExitStatus status = must(sidecar.process().wait(io::deadline_after(kPatience)));
  EXPECT_EQ(status.text(), ExitStatus({code, 0}).text()) << sidecar.messages();
  expect_sentence(sidecar.messages(), "vmshadow-sidecar", words);
}

std::set<std::uint64_t> acknowledged_epochs(const SidecarProgram& sidecar) {
  std::set<std::uint64_t> epochs;
  for (const auto& line : sidecar.lines()) {
    if (line.value("event", "") == "epoch") epochs.insert(line.at("epoch").get<std::uint64_t>());
  }
  return epochs;
}

std::set<std::uint64_t> stored_epochs(const std::string& store_directory, const std::string& vm) {
  const Ran ran = must(
      run_program({program_path("shadow-replay"), "--store", store_directory, "list", "--json"}));
  if (!ran.status.success()) throw std::runtime_error(ran.err);
  std::set<std::uint64_t> epochs;
  const auto list = nlohmann::json::parse(ran.out);
  for (const auto& entry : list.at("vms")) {
    if (entry.at("name") != vm) continue;
    for (const auto& epoch : entry.at("epochs")) {
      epochs.insert(epoch.at("epoch").get<std::uint64_t>());
    }
  }
  return epochs;
}

std::vector<std::string> busy_witness() {
  return {"arena_mib=8", "pages=all", "tick_us=5000", "fill_words=16"};
}

bool halt_at_the_cut(qmp::Session& observer, pid_t worker) {
  for (int sample = 0; sample < kSamplesMax; ++sample) {
    ::kill(worker, SIGSTOP);
    if (must(qmp::query_status(observer)).text == "colo") {
      // It stays so: QEMU waits for us, not for its own sends.
      ::poll(nullptr, 0, 50);
      if (must(qmp::query_status(observer)).text == "colo") return true;
    }
    ::kill(worker, SIGCONT);
    ::poll(nullptr, 0, sample % 5);
  }
  return false;
}

StillWatch::StillWatch(const std::string& observer_qmp_path) {
  qmp::SessionOptions options;
  options.on_event = [this](const qmp::Event& event) { note(event); };
  monitor_ = must(qmp::Session::connect(observer_qmp_path, std::move(options)));
}

void StillWatch::note(const qmp::Event& event) {
  const std::lock_guard lock(mutex_);
  if (event.name == "STOP") {
    stopped_at_ = event.stamp;
    ++stops_;
  } else if (event.name == "RESUME" && stopped_at_) {
    longest_ = std::max(longest_, event.stamp - *stopped_at_);
    stopped_at_.reset();
  }
}

void StillWatch::wait_for_a_stop() {
  wait_until([&] {
    const std::lock_guard lock(mutex_);
    return stops_ > 0;
  });
}

std::chrono::milliseconds StillWatch::wait_and_tell_longest() {
  wait_until([&] {
    if (!must(qmp::query_status(*monitor_)).running) return false;
    const std::lock_guard lock(mutex_);
    return !stopped_at_;
  });
  const std::lock_guard lock(mutex_);
  return std::chrono::duration_cast<std::chrono::milliseconds>(longest_);
}

void kill_both(SidecarProgram& sidecar, pid_t worker) {
  must(sidecar.process().signal(SIGSTOP));  // so that it does not see its worker die
  ::kill(worker, SIGKILL);
  sidecar.process().kill();
}

FaultRig::FaultRig(std::vector<std::string> extra_args, std::vector<std::string> witness)
    : FaultRig([&] {
        GuestConfig config;
        config.witness = std::move(witness);
        config.extra_args = std::move(extra_args);
        return config;
      }()) {}

FaultRig::FaultRig(const GuestConfig& config) : guest_(must(QemuGuest::start(config))) {
  must(guest_->wait_for_reports(3, io::deadline_after(kPatience)));
}

std::unique_ptr<qmp::Session> FaultRig::observer() {
  return must(qmp::Session::connect(guest_->observer_qmp_path()));
}

SidecarConfig FaultRig::config(const std::string& store) const {
  return {"vm1", guest_->qmp_path(), store, std::chrono::milliseconds(20), {}};
}

SidecarProgram FaultRig::protect(const std::string& store, std::size_t epochs,
                                 std::chrono::milliseconds interval) {
  SidecarConfig wanted = config(store);
  wanted.interval = interval;
  SidecarProgram sidecar = must(SidecarProgram::start(wanted));
  must(sidecar.wait_for_epochs(epochs, io::deadline_after(kPatience)));
  return sidecar;
}

std::chrono::milliseconds FaultRig::longest_still(std::size_t from) {
  const auto reports = must(guest_->reports());
  std::vector<std::chrono::nanoseconds> gaps;
  for (std::size_t i = 1; i < reports.size(); ++i) {
    gaps.push_back(reports[i].stamp - reports[i - 1].stamp);
  }
  if (gaps.empty()) return {};
  const auto middle = gaps.begin() + static_cast<std::ptrdiff_t>(gaps.size() / 2);
  std::nth_element(gaps.begin(), middle, gaps.end());
  const std::chrono::nanoseconds usual = *middle;
  const WitnessRun run = examine_run(std::span(reports).subspan(std::min(from, reports.size())));
  return std::chrono::duration_cast<std::chrono::milliseconds>(run.longest_gap - usual);
}

void FaultRig::expect_reports_go_on(std::chrono::milliseconds gap_max) {
  const std::size_t seen = guest_->witness().lines().size();
  must(guest_->wait_for_reports(seen + kReportsAfter, io::deadline_after(kPatience)));
  const auto reports = must(guest_->reports());
  const WitnessRun run = examine_run(reports);
  EXPECT_TRUE(run.same_run);
  EXPECT_TRUE(run.in_sequence);
  EXPECT_EQ(run.bad_pages, 0U);
  EXPECT_LT(run.longest_gap, gap_max);
}

void FaultRig::expect_runs_on(std::chrono::milliseconds gap_max) {
  const auto monitor = observer();
  EXPECT_EQ(must(qmp::query_status(*monitor)).text, "running");
  const auto migration = must(qmp::query_migrate(*monitor));
  EXPECT_FALSE(migration.active()) << migration.status;
  EXPECT_FALSE(must(qmp::query_migrate_capabilities(*monitor)).at("x-colo"));
  expect_reports_go_on(gap_max);
}

void FaultRig::expect_nothing_lost(const std::set<std::uint64_t>& acknowledged) {
  const auto stored = stored_epochs(store_directory(), "vm1");
  EXPECT_TRUE(std::includes(stored.begin(), stored.end(), acknowledged.begin(), acknowledged.end()))
      << acknowledged.size() << " epochs were acknowledged, the newest "
      << (acknowledged.empty() ? 0 : *acknowledged.rbegin()) << "; the store holds "
      << stored.size();
  const Ran verified = must(
      run_program({program_path("shadow-replay"), "--store", store_directory(), "verify", "--deep"},
                  kVerifyWithin));
  EXPECT_TRUE(verified.status.success()) << verified.err;
}

void FaultRig::expect_exact(const std::string& epoch) {
  const auto restored = must(RestoredGuest::restore(store_directory(), "vm1", epoch, *guest_));
  const WitnessVerdict verdict =
      must(judge(store_directory(), "vm1", guest_->witness(), *restored, kReportsAfter));
  EXPECT_TRUE(verdict.continues_exactly()) << verdict.text();
}

void FaultRig::expect_protectable_again(const StoreProgram& store,
                                        std::chrono::milliseconds gap_max) {
  SidecarProgram sidecar = protect(store.address());
  EXPECT_EQ(must(sidecar.stop()).text(), "exit code 0") << sidecar.messages();
  expect_runs_on(gap_max);
  expect_nothing_lost(acknowledged_epochs(sidecar));
  expect_exact();
}

}  // namespace vmshadow::test
