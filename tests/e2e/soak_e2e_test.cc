// The soak: one VM, epoch upon epoch, while its worker, its guard, its store and its link are
// killed, stopped, cut and stalled every few seconds. Whatever the faults, the guest stands still
// no longer than the guard's deadline and its takeover (pause_most()), by its own output; nothing
// acknowledged is lost; and what is restored goes on exactly where it was cut.
//
// One time is not the guard's: where it is killed, or stopped, together with the worker, nobody is
// left. A VM caught at the cut then stands until the service manager has started the next sidecar
// (or the guard goes on). That is measured as well, and stated by itself.
//
// The faults come in shuffled rounds of each kind, half of those that strike guard or worker just
// as the VM was stopped. Size and seed: VMSHADOW_SOAK_EPOCHS, VMSHADOW_SOAK_RESTORES,
// VMSHADOW_TEST_SEED.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <poll.h>
#include <signal.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <functional>
#include <map>
#include <random>
#include <thread>

#include "qmp/session.h"
#include "support/fault_rig.h"
#include "support/pause_log.h"
#include "support/prerequisite.h"
#include "support/sidecar_service.h"
#include "support/tcp_proxy.h"
#include "support/thoroughness.h"

namespace vmshadow::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr milliseconds kInterval{50};
constexpr milliseconds kDeadline{300};
/// The guard's deadline, and its takeover. The taste runs beside a build on all processors, where
/// a dying process, and QEMU itself, may wait for seconds to be run: there it bounds no more than a
/// VM that was left standing. The whole soak is for a machine of its own.
milliseconds pause_most() {
  const bool whole = soak_epochs() >= 10'000;
  return whole ? kDeadline + milliseconds{100} : milliseconds{5'000};
}
constexpr milliseconds kStrikesAfterLeast{1000};
constexpr milliseconds kStrikesAfterMost{5000};
constexpr milliseconds kTick{5};
constexpr milliseconds kWaitForTheCut{300};
constexpr std::chrono::microseconds kLookForTheCutEvery{100};  // it lasts but a few ms
/// Without an epoch for so long, protection does not come back.
constexpr seconds kStuckAfter{60};
constexpr milliseconds kProgressEvery{1000};

enum class Fault {
  worker_killed,
  worker_stopped,
  guard_killed,
  guard_stopped,
  both_killed,
  worker_killed_under_a_stopped_guard,
  store_killed,
  store_stopped,
  link_cut,
  link_stalled,
};
constexpr std::array<std::pair<Fault, const char*>, 10> kFaults = {
    {{Fault::worker_killed, "worker killed"},
     {Fault::worker_stopped, "worker stopped"},
     {Fault::guard_killed, "guard killed"},
     {Fault::guard_stopped, "guard stopped for a while"},
     {Fault::both_killed, "guard and worker killed"},
     {Fault::worker_killed_under_a_stopped_guard, "worker killed while the guard was stopped"},
     {Fault::store_killed, "store killed"},
     {Fault::store_stopped, "store stopped for a while"},
     {Fault::link_cut, "link cut"},
     {Fault::link_stalled, "link stalled for a while"}}};
const char* name_of(Fault fault) { return kFaults[static_cast<std::size_t>(fault)].second; }

struct Strike {
  MonotonicTime at;
  Fault fault{};
  bool at_the_cut{};
};

/// From where nobody was left to release the VM to where somebody was there again.
struct Unguarded {
  MonotonicTime from, to;
};

/// The silences of the guest's output.
struct Silences {
  std::size_t over_deadline{};
  std::chrono::nanoseconds longest{};
  std::chrono::nanoseconds longest_unguarded{};
  std::chrono::nanoseconds longest_after_unguarded{};  ///< of those: once somebody was there again
};

double ms(std::chrono::nanoseconds d) {
  return std::chrono::duration<double, std::milli>(d).count();
}

GuestConfig soaked_guest() {
  GuestConfig config;
  config.memory_mib = 24;
  config.witness = {"arena_mib=8", "pages=50", "tick_us=10000"};
  return config;
}

class Soak {
 public:
  explicit Soak(std::uint32_t seed)
      : random_(seed),
        rig_(soaked_guest()),
        store_(start_store(0)),
        proxy_(must(TcpProxy::start(store_.port()))),
        service_(sidecar_config()) {
    qmp::SessionOptions options;
    options.on_event = [this](const qmp::Event& event) { pauses_.handle(event); };
    observer_ = must(qmp::Session::connect(rig_.guest().observer_qmp_path(), std::move(options)));
  }

  /// Until `epochs` are acknowledged and each kind of fault has struck; then all is mended and the
  /// sidecar stops in order.
  void run(std::uint64_t epochs);
  void expect_short_pauses();
  void expect_ordinary_ends() const;
  void expect_restores(std::uint64_t count);
  [[nodiscard]] FaultRig& rig() { return rig_; }
  [[nodiscard]] const SidecarService& service() const { return service_; }
  [[nodiscard]] StoreProgram& store() { return store_; }
  /// Releases the monitor that a test's own check needs.
  void stop_watching() { observer_.reset(); }
  [[nodiscard]] std::string faults_text() const;

 private:
  // All that struck or stopped to be kept: a soak's epochs are sampled long after.
  StoreProgram start_store(std::uint16_t port) const {
    return must(StoreProgram::start(rig_.store_directory(),
                                    {"--retention", "window=1d,minutely=1d,hourly=1d"}, port));
  }
  SidecarConfig sidecar_config() const {
    SidecarConfig config = rig_.config(proxy_->address());
    config.interval = kInterval;
    config.once = false;
    config.pause_deadline = kDeadline;
    config.extra_args = {"--retry-most-s", "1"};
    return config;
  }

  void tick();
  void see_progress();
  [[nodiscard]] milliseconds draw(milliseconds least, milliseconds most) {
    return milliseconds(
        std::uniform_int_distribution<std::int64_t>(least.count(), most.count())(random_));
  }
  void after(milliseconds wait, std::function<void()> then) {
    due_.emplace(io::deadline_after(wait), std::move(then));
  }
  [[nodiscard]] Fault next_fault();
  [[nodiscard]] bool possible(Fault fault);
  void strike(Fault fault);
  void strike_sidecar(Fault fault);
  void stop_guard(milliseconds least, milliseconds most, bool unguarded);
  [[nodiscard]] bool wait_for_the_cut();
  [[nodiscard]] std::chrono::nanoseconds stopped_between(MonotonicTime from,
                                                         MonotonicTime to) const;
  void judge_silence(const WitnessReport& before, const WitnessReport& behind, Silences& found);

  std::mt19937 random_;
  FaultRig rig_;
  StoreProgram store_;
  std::unique_ptr<TcpProxy> proxy_;
  SidecarService service_;
  PauseLog pauses_;
  std::unique_ptr<qmp::Session> observer_;

  std::vector<Fault> deck_;
  std::vector<Strike> strikes_;
  std::vector<Unguarded> unguarded_;
  bool waits_for_start_ = false;  // the newest of unguarded_ ends with the next sidecar's start
  bool guard_stopped_ = false;
  bool store_away_ = false;
  bool link_stalled_ = false;
  std::multimap<io::Deadline, std::function<void()>> due_;

  MonotonicTime begun_at_{}, ended_at_{};
  io::Deadline next_strike_{};
  io::Deadline next_progress_{};
  io::Deadline stuck_at_{};
  std::size_t epochs_ = 0;
};

void Soak::run(std::uint64_t epochs) {
  begun_at_ = system_clock().monotonic();
  stuck_at_ = io::deadline_after(kStuckAfter);
  next_strike_ = io::deadline_after(kStrikesAfterLeast);
  while (epochs_ < epochs || strikes_.size() < kFaults.size()) {
    tick();
    if (io::Deadline::clock::now() < next_strike_) continue;
    if (deck_.empty()) {
      for (const auto& [fault, name] : kFaults) deck_.push_back(fault);
      std::shuffle(deck_.begin(), deck_.end(), random_);
    }
    // What cannot strike just now (no worker lives) does as soon as it can.
    if (!possible(deck_.back())) continue;
    strike(deck_.back());
    deck_.pop_back();
    next_strike_ = io::deadline_after(draw(kStrikesAfterLeast, kStrikesAfterMost));
  }
  while (!due_.empty()) tick();
  const std::size_t wanted = service_.epochs() + 5;
  while (epochs_ < wanted) tick();
  const ExitStatus status = must(service_.stop());
  EXPECT_EQ(status.text(), "exit code 0") << service_.ends().back().messages;
  ended_at_ = system_clock().monotonic();
}

void Soak::tick() {
  ::poll(nullptr, 0, static_cast<int>(kTick.count()));
  const MonotonicTime started_before = service_.started_at();
  service_.tick();
  if (waits_for_start_ && service_.started_at() != started_before) {
    unguarded_.back().to = service_.started_at();
    waits_for_start_ = false;
  }
  const auto now = io::Deadline::clock::now();
  while (!due_.empty() && due_.begin()->first <= now) {
    const auto then = std::move(due_.begin()->second);
    due_.erase(due_.begin());
    then();
  }
  if (now >= next_progress_) see_progress();
}

void Soak::see_progress() {
  next_progress_ = io::deadline_after(kProgressEvery);
  const std::size_t epochs = service_.epochs();
  if (epochs > epochs_) stuck_at_ = io::deadline_after(kStuckAfter);
  epochs_ = epochs;
  if (io::Deadline::clock::now() < stuck_at_) return;
  SidecarProgram* sidecar = service_.program();
  throw std::runtime_error(
      fmt::format("no epoch for {} s, after {}: {}", kStuckAfter.count(),
                  strikes_.empty() ? "no fault" : name_of(strikes_.back().fault),
                  sidecar != nullptr ? sidecar->messages() : std::string("no sidecar runs")));
}

bool Soak::possible(Fault fault) {
  if (guard_stopped_ || waits_for_start_) return false;
  switch (fault) {
    case Fault::guard_killed:
    case Fault::guard_stopped:
      return service_.program() != nullptr;
    case Fault::worker_killed:
    case Fault::worker_stopped:
    case Fault::both_killed:
    case Fault::worker_killed_under_a_stopped_guard:
      return service_.program() != nullptr && service_.program()->worker_pid();
    case Fault::store_killed:
    case Fault::store_stopped:
      return !store_away_;
    case Fault::link_cut:
    case Fault::link_stalled:
      return !link_stalled_;
  }
  return false;
}

void Soak::strike(Fault fault) {
  switch (fault) {
    case Fault::store_killed:
      store_.process().kill();
      store_away_ = true;
      after(draw(milliseconds(0), milliseconds(1500)), [this, port = store_.port()] {
        store_ = start_store(port);
        store_away_ = false;
      });
      break;
    case Fault::store_stopped:
      must(store_.process().signal(SIGSTOP));
      store_away_ = true;
      after(draw(milliseconds(500), milliseconds(4000)), [this] {
        must(store_.process().signal(SIGCONT));
        store_away_ = false;
      });
      break;
    case Fault::link_cut:
      proxy_->cut();
      break;
    case Fault::link_stalled:
      proxy_->stall();
      link_stalled_ = true;
      after(draw(milliseconds(500), milliseconds(4000)), [this] {
        proxy_->go_on();
        link_stalled_ = false;
      });
      break;
    case Fault::worker_killed:
    case Fault::worker_stopped:
    case Fault::guard_killed:
    case Fault::guard_stopped:
    case Fault::both_killed:
    case Fault::worker_killed_under_a_stopped_guard:
      strike_sidecar(fault);
      return;
  }
  strikes_.push_back({system_clock().monotonic(), fault, pauses_.stopped()});
}

// A worker that ends by itself meanwhile cannot be struck: the fault is then one of an instant
// later.
void Soak::strike_sidecar(Fault fault) {
  SidecarProgram& sidecar = *service_.program();
  if (random_() % 2 == 0) (void)wait_for_the_cut();
  const auto worker = sidecar.worker_pid();
  strikes_.push_back({system_clock().monotonic(), fault, pauses_.stopped()});
  switch (fault) {
    case Fault::worker_killed:
      if (worker) ::kill(*worker, SIGKILL);
      break;
    case Fault::worker_stopped:
      if (worker) ::kill(*worker, SIGSTOP);
      break;
    case Fault::guard_killed:
      sidecar.process().kill();
      break;
    case Fault::guard_stopped:
      stop_guard(milliseconds(500), milliseconds(3000), false);
      break;
    case Fault::both_killed:
      if (!worker) break;
      unguarded_.push_back({strikes_.back().at, {}});
      waits_for_start_ = true;
      kill_both(sidecar, *worker);
      break;
    case Fault::worker_killed_under_a_stopped_guard:
      if (!worker) break;
      stop_guard(milliseconds(100), milliseconds(1000), true);
      ::kill(*worker, SIGKILL);
      break;
    default:
      break;
  }
}

void Soak::stop_guard(milliseconds least, milliseconds most, bool unguarded) {
  if (unguarded) unguarded_.push_back({system_clock().monotonic(), {}});
  must(service_.program()->process().signal(SIGSTOP));
  guard_stopped_ = true;
  after(draw(least, most), [this, unguarded] {
    if (unguarded) unguarded_.back().to = system_clock().monotonic();
    must(service_.program()->process().signal(SIGCONT));
    guard_stopped_ = false;
  });
}

bool Soak::wait_for_the_cut() {
  const auto until = io::deadline_after(kWaitForTheCut);
  while (!pauses_.stopped()) {
    if (io::Deadline::clock::now() >= until) return false;
    std::this_thread::sleep_for(kLookForTheCutEvery);
  }
  return true;
}

void Soak::expect_short_pauses() {
  const auto reports = must(rig_.guest().reports());
  Silences found;
  for (std::size_t i = 1; i < reports.size(); ++i) {
    if (reports[i - 1].stamp >= begun_at_) judge_silence(reports[i - 1], reports[i], found);
  }
  std::vector<double> pauses;
  for (const PauseLog::Pause& pause : pauses_.pauses()) {
    pauses.push_back(ms(pause.resume - pause.stop));
  }
  fmt::print(
      "{} epochs acknowledged in {:.0f} s, {} attachments, {} pauses by QEMU's events (longest "
      "{:.0f} ms)\n"
      "faults: {}\n"
      "the guest's output: longest silence {:.0f} ms, {} over {} ms; where nobody was left {:.0f} "
      "ms, of it {:.0f} ms once a guard was there again\n",
      epochs_, ms(ended_at_ - begun_at_) / 1000, service_.attachments(), pauses.size(),
      pauses.empty() ? 0 : *std::max_element(pauses.begin(), pauses.end()), faults_text(),
      ms(found.longest), found.over_deadline, kDeadline.count(), ms(found.longest_unguarded),
      ms(found.longest_after_unguarded));
}

void Soak::judge_silence(const WitnessReport& before, const WitnessReport& behind,
                         Silences& found) {
  const auto silence = behind.stamp - before.stamp;
  const auto nobody = std::find_if(unguarded_.begin(), unguarded_.end(), [&](const Unguarded& u) {
    return u.from <= behind.stamp && before.stamp <= u.to;
  });
  if (nobody != unguarded_.end()) {
    found.longest_unguarded = std::max(found.longest_unguarded, silence);
    const auto once_there = behind.stamp - std::max(nobody->to, before.stamp);
    found.longest_after_unguarded = std::max(found.longest_after_unguarded, once_there);
    EXPECT_LE(ms(once_there), ms(pause_most()));
    return;
  }
  found.longest = std::max(found.longest, silence);
  if (silence > kDeadline) ++found.over_deadline;
  if (silence <= pause_most()) return;
  std::string around;
  for (const Strike& strike : strikes_) {
    const auto since = behind.stamp - strike.at;
    if (since < std::chrono::nanoseconds{} || since > silence + seconds(5)) continue;
    around += fmt::format("; {:.0f} ms after its begin: {}{}", ms(strike.at - before.stamp),
                          name_of(strike.fault), strike.at_the_cut ? " at the cut" : "");
  }
  ADD_FAILURE() << fmt::format(
      "the guest was silent for {:.0f} ms (stopped for {:.0f} ms of it, says QEMU), {:.1f} s into "
      "the run{}",
      ms(silence), ms(stopped_between(before.stamp, behind.stamp)),
      ms(before.stamp - begun_at_) / 1000, around);
}

/// By QEMU's events.
std::chrono::nanoseconds Soak::stopped_between(MonotonicTime from, MonotonicTime to) const {
  std::chrono::nanoseconds stopped{};
  for (const PauseLog::Pause& pause : pauses_.pauses()) {
    const auto overlap =
        std::min(to, monotonic_of(pause.resume)) - std::max(from, monotonic_of(pause.stop));
    stopped += std::max(overlap, std::chrono::nanoseconds{});
  }
  return stopped;
}

// A sidecar ends because it was killed, or at its start, because the one before still leaves.
void Soak::expect_ordinary_ends() const {
  std::size_t refused = 0;
  const auto& ends = service_.ends();
  for (std::size_t i = 0; i + 1 < ends.size(); ++i) {
    if (ends[i].status.signal == SIGKILL) continue;
    ++refused;
    EXPECT_FALSE(ends[i].attached) << ends[i].messages;
    EXPECT_EQ(ends[i].status.text(), "exit code 1") << ends[i].messages;
    EXPECT_THAT(ends[i].messages,
                ::testing::AnyOf(::testing::HasSubstr("another client holds the monitor"),
                                 ::testing::HasSubstr("another vmshadow-sidecar"),
                                 ::testing::HasSubstr("the store at")));
  }
  fmt::print("{} sidecars, {} starts refused while the one before still left\n", ends.size(),
             refused);
}

void Soak::expect_restores(std::uint64_t count) {
  const std::set<std::uint64_t> acknowledged = service_.acknowledged();
  std::vector<std::uint64_t> sample;
  std::sample(acknowledged.begin(), acknowledged.end(), std::back_inserter(sample), count, random_);
  for (const std::uint64_t epoch : sample) {
    SCOPED_TRACE(fmt::format("epoch {}", epoch));
    rig_.expect_exact(std::to_string(epoch));
  }
  fmt::print("{} of {} epochs restored\n", sample.size(), acknowledged.size());
}

std::string Soak::faults_text() const {
  std::string text;
  for (const auto& [fault, name] : kFaults) {
    const auto count = std::count_if(strikes_.begin(), strikes_.end(),
                                     [f = fault](const Strike& s) { return s.fault == f; });
    const auto at_the_cut =
        std::count_if(strikes_.begin(), strikes_.end(),
                      [f = fault](const Strike& s) { return s.fault == f && s.at_the_cut; });
    text +=
        fmt::format("{}{} {} ({} at the cut)", text.empty() ? "" : ", ", name, count, at_the_cut);
  }
  return text;
}

TEST(SoakE2e, EveryFaultAndEveryEpoch) {
  VMSHADOW_REQUIRE(guest_available(soaked_guest()));
  const std::uint32_t seed = draw_seed();
  SCOPED_TRACE(fmt::format("VMSHADOW_TEST_SEED={}", seed));
  fmt::print("seed {}\n", seed);
  std::fflush(stdout);  // known also of a run that does not end
  Soak soak(seed);
  soak.run(soak_epochs());
  soak.expect_short_pauses();
  soak.expect_ordinary_ends();
  soak.stop_watching();
  soak.rig().expect_runs_on(seconds(60));
  EXPECT_EQ(must(soak.store().stop()).text(), "exit code 0");
  soak.rig().expect_nothing_lost(soak.service().acknowledged());
  soak.expect_restores(soak_restores());
}

}  // namespace
}  // namespace vmshadow::test
