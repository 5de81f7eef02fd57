#include "scenario/pause_ground.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <span>
#include <thread>
#include <utility>

#include "capture/vm_events.h"
#include "qmp/session.h"
#include "support/colo_secondary.h"
#include "support/discarding_secondary.h"

namespace vmshadow::bench {
namespace {

using std::chrono::milliseconds;

constexpr std::chrono::seconds kGuestBootWithin{180};
constexpr std::chrono::seconds kAttachedWithin{60};
constexpr milliseconds kAttachPoll{20};
constexpr const char* kBenchVm = "bench-pause";
/// Of a guard that must not end a pause that is to be measured.
constexpr std::chrono::seconds kPauseDeadline{60};

double as_ms(std::chrono::microseconds d) { return static_cast<double>(d.count()) / 1000.0; }

/// A monitor session whose STOP and RESUME are noted.
struct WatchedSession {
  capture::VmEvents events;
  std::unique_ptr<qmp::Session> session;
  [[nodiscard]] Status connect(const std::string& path) {
    qmp::SessionOptions options;
    options.on_event = [this](const qmp::Event& event) { events.handle(event); };
    VMSHADOW_ASSIGN(session, qmp::Session::connect(path, options));
    return {};
  }
};

/// Calls `take` at the interval, as the sidecar does: from the time of asking, without a burst
/// after a slow one. Once for the epoch that does not count, then `epochs` times.
template <class Take>
Status take_at_interval(unsigned epochs, milliseconds interval, Take take) {
  auto next = std::chrono::steady_clock::now() + interval;
  for (unsigned i = 0; i <= epochs; ++i) {
    std::this_thread::sleep_until(next);
    next = std::max(next + interval, std::chrono::steady_clock::now());
    VMSHADOW_TRY(take(i > 0));
  }
  return {};
}

/// The guest's count of its writes at a moment, between the reports around it.
double writes_at(const std::vector<test::WitnessReport>& reports, MonotonicTime when) {
  const auto behind = std::find_if(reports.begin(), reports.end(),
                                   [&](const auto& report) { return report.stamp > when; });
  if (behind == reports.begin()) return static_cast<double>(reports.front().writes);
  const auto& before = *std::prev(behind);
  if (behind == reports.end()) return static_cast<double>(before.writes);
  const double part = std::chrono::duration<double>(when - before.stamp) /
                      std::chrono::duration<double>(behind->stamp - before.stamp);
  return static_cast<double>(before.writes) +
         part * static_cast<double>(behind->writes - before.writes);
}

/// Between the first and the last of these cuts, per epoch; nothing from fewer than two.
std::vector<double> written_per_epoch(std::span<const test::PauseLog::Pause> cuts,
                                      const std::vector<test::WitnessReport>& reports) {
  if (cuts.size() < 2 || reports.empty()) return {};
  const double first = writes_at(reports, test::monotonic_of(cuts.front().stop));
  const double last = writes_at(reports, test::monotonic_of(cuts.back().stop));
  return {(last - first) / static_cast<double>(cuts.size() - 1)};
}

}  // namespace

const char* name_of(Contender contender) {
  switch (contender) {
    case Contender::floor:
      return "floor";
    case Contender::vmshadow:
      return "vmshadow";
    case Contender::colo:
      return "colo";
  }
  return "?";
}

void PauseSession::add(const PauseSession& other) {
  const auto append = [](std::vector<double>& to, const std::vector<double>& from) {
    to.insert(to.end(), from.begin(), from.end());
  };
  append(pause_ms, other.pause_ms);
  append(pages, other.pages);
  append(written, other.written);
  for (const auto& [phase, took] : other.phases_ms) append(phases_ms[phase], took);
}

PauseGround::PauseGround(test::GuestConfig config, test::StoreProgram store,
                         std::unique_ptr<test::TempDir> directory,
                         std::unique_ptr<test::QemuGuest> guest)
    : config_(std::move(config)),
      directory_(std::move(directory)),
      store_(std::move(store)),
      guest_(std::move(guest)) {}

Result<std::unique_ptr<PauseGround>> PauseGround::start(const test::GuestConfig& config) {
  VMSHADOW_ASSIGN(auto guest, test::QemuGuest::start(config));
  VMSHADOW_TRY(guest->wait_for_reports(3, io::deadline_after(kGuestBootWithin)));
  auto directory = std::make_unique<test::TempDir>();
  VMSHADOW_ASSIGN(auto store, test::StoreProgram::start(directory->file("store")));
  std::unique_ptr<PauseGround> ground(
      new PauseGround(config, std::move(store), std::move(directory), std::move(guest)));
  qmp::SessionOptions options;
  options.on_event = [log = &ground->pauses_](const qmp::Event& event) { log->handle(event); };
  VMSHADOW_ASSIGN(ground->observer_,
                  qmp::Session::connect(ground->guest_->observer_qmp_path(), std::move(options)));
  return ground;
}

Result<PauseSession> PauseGround::run(Contender contender, unsigned epochs, milliseconds interval) {
  // One of the first pass comes before those of its epochs.
  const std::size_t cuts_before = pauses_.pauses().size() + 1;
  VMSHADOW_ASSIGN(PauseSession session, run_session(contender, epochs, interval));
  VMSHADOW_ASSIGN(const auto reports, guest_->reports());
  const auto cuts = pauses_.pauses();
  session.written =
      written_per_epoch(std::span(cuts).subspan(std::min(cuts_before, cuts.size())), reports);
  return session;
}

Result<PauseSession> PauseGround::run_session(Contender contender, unsigned epochs,
                                              milliseconds interval) {
  switch (contender) {
    case Contender::floor:
      return run_floor(epochs, interval);
    case Contender::vmshadow:
      return run_vmshadow(epochs, interval);
    case Contender::colo:
      return run_colo(epochs, interval);
  }
  return fail(Errc::invalid_argument, "no such contender");
}

Result<PauseSession> PauseGround::run_floor(unsigned epochs, milliseconds interval) {
  WatchedSession monitor;
  VMSHADOW_TRY(monitor.connect(guest_->qmp_path()));
  DiscardingSecondary secondary(*monitor.session, monitor.events);
  VMSHADOW_TRY(secondary.attach());
  PauseSession session;
  VMSHADOW_TRY(take_at_interval(epochs, interval, [&](bool counts) -> Status {
    VMSHADOW_ASSIGN(const auto epoch, secondary.take_epoch());
    if (!epoch.pause) return fail(Errc::timed_out, "an epoch without STOP and RESUME events");
    if (!counts) return {};
    session.pause_ms.push_back(as_ms(*epoch.pause));
    session.pages.push_back(static_cast<double>(epoch.pages));
    return {};
  }));
  VMSHADOW_TRY(secondary.detach());
  return session;
}

Result<PauseSession> PauseGround::run_colo(unsigned epochs, milliseconds interval) {
  WatchedSession monitor;
  VMSHADOW_TRY(monitor.connect(guest_->qmp_path()));
  ColoSecondary secondary(config_, *monitor.session, monitor.events);
  VMSHADOW_TRY(secondary.attach());
  PauseSession session;
  VMSHADOW_TRY(take_at_interval(epochs, interval, [&](bool counts) -> Status {
    VMSHADOW_ASSIGN(const auto pause, secondary.take_epoch());
    if (counts) session.pause_ms.push_back(as_ms(pause));
    return {};
  }));
  VMSHADOW_TRY(secondary.detach());
  return session;
}

Result<test::SidecarProgram> PauseGround::start_sidecar(milliseconds interval,
                                                        std::vector<std::string> extra) {
  test::SidecarConfig config;
  config.vm = kBenchVm;
  config.qmp_path = guest_->qmp_path();
  config.store = store_.address();
  config.interval = interval;
  config.extra_args = std::move(extra);
  config.pause_deadline = kPauseDeadline;
  VMSHADOW_ASSIGN(auto sidecar, test::SidecarProgram::start(config));
  const auto deadline = io::deadline_after(kAttachedWithin);
  const auto attached = [&] {
    for (const auto& line : sidecar.lines()) {
      if (line.value("event", "") == "attached") return true;
    }
    return false;
  };
  while (!attached()) {
    if (!sidecar.process().running() || io::Deadline::clock::now() >= deadline) {
      return fail(Errc::timed_out, "the sidecar did not attach: " + sidecar.messages());
    }
    std::this_thread::sleep_for(kAttachPoll);
  }
  return sidecar;
}

Result<PauseSession> PauseGround::run_vmshadow(unsigned epochs, milliseconds interval) {
  VMSHADOW_ASSIGN(auto sidecar, start_sidecar(interval, {"--epochs", std::to_string(epochs + 1)}));
  // Asleep: reading its lines meanwhile would take the processor from what is measured.
  const auto limit = interval * (epochs + 1) * 10 + std::chrono::seconds(60);
  VMSHADOW_ASSIGN(const auto ended, sidecar.process().wait(io::deadline_after(limit)));
  if (!ended.success()) {
    return fail(Errc::io,
                fmt::format("the sidecar ended with {}: {}", ended.text(), sidecar.messages()));
  }
  PauseSession session;
  unsigned seen = 0;
  for (const auto& line : sidecar.lines()) {
    if (line.value("event", "") != "epoch" || line.at("first_pass").get<bool>()) continue;
    if (seen++ == 0) continue;
    if (line.at("pause_ms").is_null()) {
      return fail(Errc::timed_out, "an epoch without STOP and RESUME events");
    }
    session.pause_ms.push_back(line.at("pause_ms").get<double>());
    session.pages.push_back(line.at("pages").get<double>());
    for (const char* phase : kPausePhases) {
      session.phases_ms[phase].push_back(line.at(std::string(phase) + "_ms").get<double>());
    }
  }
  if (session.pause_ms.size() != epochs) {
    return fail(Errc::protocol, fmt::format("the sidecar reported {} of {} epochs",
                                            session.pause_ms.size(), epochs));
  }
  return session;
}

}  // namespace vmshadow::bench
