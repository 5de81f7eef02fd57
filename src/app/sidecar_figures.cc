#include "app/sidecar_figures.h"

namespace vmshadow::app {

void SidecarFigures::add(const EpochStats& stats, const ship::CommittedEpoch& epoch,
                         bool first_pass) {
  const delta::EncodeStats& encoded = epoch.encoded;
  data_pages += encoded.data_pages;
  zero_pages += encoded.zero_pages;
  unchanged_pages += encoded.unchanged_pages;
  raw_bytes += encoded.captured_pages * kPageBytes;
  shipped_bytes += encoded.record_bytes;
  device_bytes += stats.device_bytes;
  ++epochs;
  if (first_pass) {
    ++first_passes;
    first_pass_us = stats.ram.count();
    return;
  }
  dirty_pages = encoded.captured_pages - encoded.unchanged_pages;
  commit.add(epoch.commit_latency);
  peak_lag.add(epoch.peak_lag);
  if (stats.pass) pass.add(*stats.pass);
  if (!stats.pause) {
    ++pauses_unknown;
    return;
  }
  pause.add(*stats.pause);
  for (std::size_t i = 0; i < phases.size(); ++i) phases[i].add(stats.*kEpochPhases[i].took);
}

void SidecarFigures::durable(const ship::CommittedEpoch& epoch, std::uint64_t worker) {
  committed_cut_wall_ns = epoch.cut_wall.ns;
  committed_cut_ns = epoch.cut.ns;
  committed_epoch = epoch.epoch.value;
  committed_by = worker;
}

void SidecarFigures::paced(const PaceReport& pace) {
  interval_us = pace.interval.count();
  target_lag_us = pace.asked_for ? pace.asked_for->target_lag.count() : 0;
  target_lag_held = !pace.cannot_hold;
  holds_lag_us = pace.passes ? pace.passes->lag.count() : 0;
}

}  // namespace vmshadow::app
