#include "app/epoch_pacer.h"

#include <algorithm>
#include <utility>

namespace vmshadow::app {
namespace {

using std::chrono::microseconds;

std::optional<capture::Cadence> cadence_for(const std::optional<capture::CadenceOptions>& options) {
  if (!options) return std::nullopt;
  return capture::Cadence(*options);
}

}  // namespace

void EpochPacer::Recent::add(microseconds value) { kept_[count_++ % kKept] = value; }

std::optional<microseconds> EpochPacer::Recent::mean() const {
  const std::size_t known = std::min(count_, kKept);
  if (known == 0) return std::nullopt;
  microseconds sum{};
  for (std::size_t i = 0; i < known; ++i) sum += kept_[i];
  return sum / known;
}

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
  // A full pass brings all pages: which of them changed, the encoder says.
  cost.pages = stats.pass ? 0 : stats.pages;
  cost.taking = stats.pass.value_or(microseconds{});
  if (stats.pass) passes_.add(*stats.pass);
  if (last_asked_) {
    cost.period = std::chrono::duration_cast<microseconds>(asked - *last_asked_);
    cost.cpu = cpu - last_cpu_;
    paused_ += last_pause_;
    pages_ += cost.pages;
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
  if (full_pass) return;
  latencies_.add(epoch.commit_latency);
  if (passes_.mean()) pages_ += epoch.encoded.data_pages + epoch.encoded.zero_pages;
  if (cadence_) cadence_->durable(epoch.commit_latency);
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
  if (const auto pass = passes_.mean()) {
    report.passes = PaceReport::Passes{*pass, *pass + latencies_.mean().value_or(microseconds{})};
  }
  report.asked_for = asked_for_;
  if (cadence_) {
    if (!report.passes) report.dirty_pages_per_s = cadence_->dirty_pages_per_s();
    report.limit = cadence_->limit();
    report.cannot_hold = cadence_->cannot_hold();
  }
  return report;
}

}  // namespace vmshadow::app
