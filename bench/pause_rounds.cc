#include "pause_rounds.h"

#include <fmt/format.h>

#include <thread>

#include "base/statistics.h"
#include "capture/colo_source.h"
#include "capture/vm_events.h"
#include "qmp/session.h"
#include "ship/epoch_shipper.h"
#include "support/discarding_secondary.h"

namespace vmshadow::bench {
namespace {

constexpr std::chrono::seconds kFlush{30};

// Takes one epoch that is not counted (it holds what was dirtied during the first pass), then the
// counted ones.
template <class TakeEpoch>
Result<std::vector<PauseSample>> take_samples(const PauseOptions& options, TakeEpoch take_epoch) {
  std::vector<PauseSample> samples;
  for (unsigned i = 0; i <= options.epochs_per_round; ++i) {
    std::this_thread::sleep_for(options.interval);
    VMSHADOW_ASSIGN(const auto epoch, take_epoch());
    if (i == 0) continue;
    if (!epoch.pause) return fail(Errc::timed_out, "an epoch without STOP and RESUME events");
    samples.push_back({static_cast<double>(epoch.pause->count()) / 1000.0, epoch.pages});
  }
  return samples;
}

Result<std::vector<PauseSample>> run_floor(const PauseOptions& options, qmp::Session& session,
                                           const capture::VmEvents& events) {
  DiscardingSecondary secondary(session, events);
  VMSHADOW_TRY(secondary.attach());
  VMSHADOW_ASSIGN(auto samples, take_samples(options, [&] { return secondary.take_epoch(); }));
  VMSHADOW_TRY(secondary.detach());
  return samples;
}

Result<std::vector<PauseSample>> run_vmshadow(const PauseOptions& options, qmp::Session& session,
                                              const capture::VmEvents& events) {
  VMSHADOW_ASSIGN(const auto shipper,
                  ship::EpochShipper::connect(options.store, "bench-pause", system_clock(),
                                              [](const ship::CommittedEpoch&) {}));
  capture::ColoSource source(session, events, system_clock());
  VMSHADOW_TRY(source.attach(*shipper, shipper->first_epoch()));
  VMSHADOW_ASSIGN(auto samples, take_samples(options, [&]() -> Result<EpochStats> {
                    for (;;) {
                      VMSHADOW_ASSIGN(const bool room, shipper->wait_for_room(options.interval));
                      if (room) return source.take_epoch();
                    }
                  }));
  VMSHADOW_TRY(source.detach());
  VMSHADOW_TRY(shipper->flush(kFlush));
  return samples;
}

std::vector<double> pauses_of(const std::vector<PauseSample>& samples) {
  std::vector<double> pauses;
  for (const PauseSample& sample : samples) pauses.push_back(sample.pause_ms);
  return pauses;
}

}  // namespace

Result<std::vector<PauseRound>> measure_pauses(const PauseOptions& options) {
  capture::VmEvents events;
  qmp::SessionOptions session_options;
  session_options.on_event = [&events](const qmp::Event& event) { events.handle(event); };
  VMSHADOW_ASSIGN(const auto session, qmp::Session::connect(options.qmp_path, session_options));
  std::vector<PauseRound> rounds;
  for (unsigned i = 0; i < options.rounds; ++i) {
    PauseRound round;
    for (const bool floor : {i % 2 == 0, i % 2 != 0}) {
      auto samples =
          floor ? run_floor(options, *session, events) : run_vmshadow(options, *session, events);
      if (!samples) {
        return fail(std::move(samples).error().with_context(
            fmt::format("round {}, {}", i, floor ? "floor" : "vmshadow")));
      }
      (floor ? round.floor : round.vmshadow) = std::move(*samples);
    }
    rounds.push_back(std::move(round));
  }
  return rounds;
}

PauseReport summarize(const std::vector<PauseRound>& rounds) {
  PauseReport report;
  std::vector<double> floor, vmshadow, ratios, pages;
  for (const PauseRound& round : rounds) {
    const auto f = pauses_of(round.floor);
    const auto v = pauses_of(round.vmshadow);
    ratios.push_back(quantile(v, 0.5) / quantile(f, 0.5));
    floor.insert(floor.end(), f.begin(), f.end());
    vmshadow.insert(vmshadow.end(), v.begin(), v.end());
    for (const auto* samples : {&round.floor, &round.vmshadow}) {
      for (const PauseSample& s : *samples) pages.push_back(static_cast<double>(s.pages));
    }
  }
  report.pairs = static_cast<unsigned>(rounds.size());
  report.epochs_each = vmshadow.size();
  report.pages_p50 = quantile(pages, 0.5);
  report.floor_ms_p50 = quantile(floor, 0.5);
  report.floor_ms_p99 = quantile(floor, 0.99);
  report.vmshadow_ms_p50 = quantile(vmshadow, 0.5);
  report.vmshadow_ms_p99 = quantile(vmshadow, 0.99);
  report.ratio_p50 = quantile(ratios, 0.5);
  report.ratio_p99 = report.floor_ms_p99 > 0 ? report.vmshadow_ms_p99 / report.floor_ms_p99 : 0;
  return report;
}

}  // namespace vmshadow::bench
