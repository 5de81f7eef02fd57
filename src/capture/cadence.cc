#include "capture/cadence.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/assert.h"

namespace vmshadow::capture {
namespace {

using std::chrono::microseconds;

constexpr unsigned kSmoothedOver = 8;
/// A tenth inside the limit, so that the dead band does not reach over it.
constexpr double kAim = 0.9;
constexpr double kWidenMost = 2;
constexpr double kNarrowMost = 0.8;
/// More than the dead band.
constexpr double kSmallStep = 1.15;
/// More epochs than this on their way at once only wait for one another.
constexpr double kUnderWay = 4;
/// Epochs in a row before it is said that something cannot be held, or can again.
constexpr unsigned kEpochsToSay = 8;
/// Of this many deviations the lag keeps clear.
constexpr double kDeviations = 2;

double us(microseconds d) { return static_cast<double>(d.count()); }

std::string time_text(double value_us) {
  if (value_us >= 10e6) return fmt::format("{:.0f} s", value_us / 1e6);
  if (value_us >= 1e6) return fmt::format("{:.1f} s", value_us / 1e6);
  if (value_us >= 10e3) return fmt::format("{:.0f} ms", value_us / 1e3);
  return fmt::format("{:.1f} ms", value_us / 1e3);
}
std::string percent_text(double share) {
  return fmt::format("{:.{}f} %", share * 100, share < 0.1 ? 1 : 0);
}

}  // namespace

void Cadence::Smoothed::add(double value) {
  count_ = std::min(count_ + 1, kSmoothedOver);
  const double weight = 1.0 / count_;
  const double distance = value - mean_;
  mean_ += weight * distance;
  if (count_ > 1) deviation_ += weight * (std::fabs(distance) - deviation_);
}

const char* text_of(Cadence::Limit limit) {
  switch (limit) {
    case Cadence::Limit::target_lag:
      return "target_lag";
    case Cadence::Limit::pause_budget:
      return "pause_budget";
    case Cadence::Limit::cpu_budget:
      return "cpu_budget";
    case Cadence::Limit::latency:
      return "latency";
    case Cadence::Limit::pass:
      return "pass";
  }
  return "?";
}

Cadence::Cadence(const CadenceOptions& options)
    : options_(options),
      interval_(std::clamp(options.target_lag / 2, options.interval_min, options.interval_max)) {
  VMSHADOW_ASSERT(options.pause_budget > 0 && options.interval_min.count() > 0 &&
                  options.interval_min <= options.interval_max);
  VMSHADOW_ASSERT(!options.cpu_budget || *options.cpu_budget > 0);
}

void Cadence::durable(microseconds latency) { latency_.add(us(latency)); }

void Cadence::taken(const EpochCost& cost) {
  pause_.add(us(cost.pause));
  newest_pause_us_ = us(cost.pause);
  pages_.add(static_cast<double>(cost.pages));
  taking_.add(us(cost.taking));
  if (cost.period.count() > 0) {
    period_.add(us(cost.period));
    cpu_.add(us(cost.cpu));
  }
  const Wish wanted = wish();
  const double now = us(interval_);
  if (std::fabs(wanted.us - now) > kDeadBand * now) {
    const double next = std::clamp(wanted.us, now * kNarrowMost, now * kWidenMost);
    interval_ = microseconds(std::llround(next));
  }
  limit_ = wanted.limit;
  judge(wanted);
}

Cadence::Wish Cadence::wish() const {
  const double latency = latency_.mean();
  Wish wanted{kAim * us(options_.target_lag) - latency - kDeviations * latency_.deviation(),
              Limit::target_lag};
  if (latency / kUnderWay > wanted.us) wanted = {latency / kUnderWay, Limit::latency};
  if (options_.cpu_budget) {
    const double for_cpu = cpu_.mean() / (kAim * *options_.cpu_budget);
    if (for_cpu > wanted.us) wanted = {for_cpu, Limit::cpu_budget};
  }
  const double for_budget = pause_.mean() / (kAim * options_.pause_budget);
  if (for_budget > wanted.us) wanted = {for_budget, Limit::pause_budget};
  wanted.us = std::min(wanted.us, us(interval_) * widening_max());
  wanted.us = std::clamp(wanted.us, us(options_.interval_min), us(options_.interval_max));
  if (taking_.mean() > wanted.us) wanted = {taking_.mean(), Limit::pass};
  return wanted;
}

// At worst the pause grows with the interval; only trying shows whether it does.
double Cadence::widening_max() const {
  const double room = us(options_.pause_max) / std::max(newest_pause_us_, 1.0);
  return room <= 1 ? 1 : std::max(room, kSmallStep);
}

bool Cadence::lag_is_held() const {
  return us(interval_) + latency_.mean() <= us(options_.target_lag);
}

bool Cadence::budget_is_held() const {
  return pause_.mean() <= options_.pause_budget * us(interval_);
}

// While the interval is still on its way nothing can be said.
void Cadence::judge(const Wish& wanted) {
  const double now = us(interval_);
  if (std::fabs(wanted.us - now) > kDeadBand * now) return;
  const bool held = lag_is_held() && budget_is_held();
  if (!held) why_ = explain();
  contrary_ = held == holds_ ? 0 : contrary_ + 1;
  if (contrary_ < kEpochsToSay) return;
  holds_ = held;
  contrary_ = 0;
}

std::string Cadence::explain() const {
  const double lag = us(interval_) + latency_.mean();
  const std::string target = time_text(us(options_.target_lag));
  if (!budget_is_held()) {
    return fmt::format(
        "the pause budget of {} cannot be held: even one epoch in {} pauses the guest for {}, {} "
        "of the time; the lag is then about {}",
        percent_text(options_.pause_budget), time_text(us(interval_)), time_text(pause_.mean()),
        percent_text(pause_.mean() / us(interval_)), time_text(lag));
  }
  const std::string cannot = fmt::format("the target lag of {} cannot be held: ", target);
  const std::string instead = fmt::format("about {} can be", time_text(lag));
  // What would be left of the target for the interval.
  const double left = us(options_.target_lag) - latency_.mean();
  switch (limit_) {
    case Limit::pause_budget:
      if (left <= 0 || pause_.mean() > left) break;
      return fmt::format(
          "{}an epoch pauses the guest for {}, so a pause budget of {} allows one in {}; {}, or "
          "the "
          "target with a budget of {}",
          cannot, time_text(pause_.mean()), percent_text(options_.pause_budget),
          time_text(us(interval_)), instead, percent_text(pause_.mean() / (kAim * left)));
    case Limit::cpu_budget:
      if (left <= 0) break;
      return fmt::format(
          "{}an epoch costs {} of processor time, so a CPU budget of {} allows one in {}; {}",
          cannot, time_text(cpu_.mean()), percent_text(*options_.cpu_budget),
          time_text(us(interval_)), instead);
    case Limit::pass:
      return fmt::format("{}a pass over all RAM takes {} and is durable {} after its cut; {}",
                         cannot, time_text(taking_.mean()), time_text(latency_.mean()), instead);
    case Limit::target_lag:
    case Limit::latency:
      break;
  }
  return fmt::format("{}an epoch is durable {} after its cut; {}", cannot,
                     time_text(latency_.mean()), instead);
}

double Cadence::dirty_pages_per_s() const {
  return period_.mean() > 0 ? pages_.mean() / period_.mean() * 1e6 : 0;
}

}  // namespace vmshadow::capture
