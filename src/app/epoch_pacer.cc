#include "app/epoch_pacer.h"

#include <utility>

namespace vmshadow::app {
namespace {

using std::chrono::microseconds;

std::optional<capture::Cadence> cadence_for(const std::optional<capture::CadenceOptions>& options) {
  if (!options) return std::nullopt;
  return capture::Cadence(*options);
}

}  // namespace

EpochPacer::EpochPacer(microseconds interval, const std::optional<capture::CadenceOptions>& cadence)
    : set_interval_(interval), asked_for_(cadence), cadence_(cadence_for(cadence)) {}

microseconds EpochPacer::interval() const {
  const std::lock_guard lock(mutex_);
  return cadence_ ? cadence_->interval() : set_interval_;
}

void EpochPacer::taken(const EpochStats& stats, MonotonicTime asked, microseconds cpu) {
  const std::lock_guard lock(mutex_);
  capture::EpochCost cost;
  // Without the events: what was seen of it.
  cost.pause = stats.pause.value_or(stats.stop + stats.cut + stats.ram + stats.device);
  cost.pages = stats.pages;
  if (last_asked_) {
    cost.period = std::chrono::duration_cast<microseconds>(asked - *last_asked_);
    cost.cpu = cpu - last_cpu_;
    paused_ += last_pause_;
    pages_ += stats.pages;
  } else {
    first_asked_ = asked;
  }
  last_asked_ = asked;
  last_cpu_ = cpu;
  last_pause_ = cost.pause;
  if (cadence_) cadence_->taken(cost);
}

void EpochPacer::durable(const ship::CommittedEpoch& epoch) {
  const std::lock_guard lock(mutex_);
  const bool full_pass = !std::exchange(full_pass_durable_, true);
  if (cadence_ && !full_pass) cadence_->durable(epoch.commit_latency);
}

PaceReport EpochPacer::report() const {
  const std::lock_guard lock(mutex_);
  PaceReport report;
  report.interval = cadence_ ? cadence_->interval() : set_interval_;
  if (first_asked_ && *last_asked_ > *first_asked_) {
    const std::chrono::duration<double> passed = *last_asked_ - *first_asked_;
    report.pause_share = std::chrono::duration<double>(paused_).count() / passed.count();
    report.dirty_pages_per_s = static_cast<double>(pages_) / passed.count();
  }
  report.asked_for = asked_for_;
  if (cadence_) {
    report.dirty_pages_per_s = cadence_->dirty_pages_per_s();
    report.limit = cadence_->limit();
    report.cannot_hold = cadence_->cannot_hold();
  }
  return report;
}

}  // namespace vmshadow::app
