// When to take the next epoch, given how old the newest committed one may be (the target lag) and
// how much of its time the guest may stand still (the pause budget). Pure.
//
//   lag just before a commit = interval + latency          latency: from a cut until it is durable
//   share of time paused     = pause / interval
//
//   for the lag     interval = target − latency            the widest that holds it, so the
//   cheapest for the budget  interval = pause / budget              the narrowest allowed for the
//   CPU     interval = processor time / budget     likewise, if there is such a budget
//
// A source that reads all RAM for each epoch takes its time over it: no interval is shorter than
// such a pass.
//
// The widest of these wins: the guest comes first. An interval below a quarter of the latency only
// makes epochs queue. A pause may grow with the interval, or (a guest that writes the same pages
// again and again) not: so near pause_max it is widened by small steps, and beyond not at all.
//
// What is measured is smoothed over some eight epochs. The interval moves only when it is off by
// more than kDeadBand, aims a tenth inside either limit, at most doubles and at most loses a fifth
// per epoch: so it settles, though pause and latency follow it. (Widening the interval lengthens
// pauses by less than it widens: the loop's gain is below one, or nothing helps.)
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

namespace vmshadow::capture {

struct CadenceOptions {
  std::chrono::microseconds target_lag{1'000'000};
  double pause_budget = 0.05;        ///< share of the guest's time, 0 … 1
  std::optional<double> cpu_budget;  ///< of the sidecar, in cores
  std::chrono::microseconds interval_min{10'000};
  std::chrono::microseconds interval_max{10'000'000};
  /// A pause this long is reason not to widen the interval, whatever the budget says: well below
  /// what the guard ends.
  std::chrono::microseconds pause_max{500'000};
};

/// What one epoch took.
struct EpochCost {
  std::chrono::microseconds pause{};
  std::chrono::microseconds cpu{};     ///< processor time of the sidecar since the epoch before
  std::chrono::microseconds period{};  ///< since the epoch before was asked for; 0: not known
  /// From asking for it until the next could be asked for: a full pass; 0: no time to speak of.
  std::chrono::microseconds taking{};
  std::uint64_t pages{};
};

class Cadence {
 public:
  explicit Cadence(const CadenceOptions& options);

  /// Takes note of an epoch and chooses the next interval.
  void taken(const EpochCost& cost);
  /// Takes note that an epoch is durable, `latency` after its cut.
  void durable(std::chrono::microseconds latency);

  /// From asking for one epoch to asking for the next.
  [[nodiscard]] std::chrono::microseconds interval() const { return interval_; }

  /// What decides the interval.
  enum class Limit { target_lag, pause_budget, cpu_budget, latency, pass };
  [[nodiscard]] Limit limit() const { return limit_; }
  /// nullopt while all that was asked for is held, or is not yet known not to be; else one
  /// sentence: what cannot be held, why, and what can be.
  [[nodiscard]] std::optional<std::string> cannot_hold() const {
    return holds_ ? std::nullopt : std::optional(why_);
  }
  [[nodiscard]] double dirty_pages_per_s() const;

  static constexpr double kDeadBand = 0.1;

 private:
  /// An average of the newest few, in microseconds; of all while there are fewer.
  class Smoothed {
   public:
    void add(double value);
    [[nodiscard]] double mean() const { return mean_; }
    /// The mean distance from the mean.
    [[nodiscard]] double deviation() const { return deviation_; }

   private:
    double mean_ = 0;
    double deviation_ = 0;
    unsigned count_ = 0;
  };
  struct Wish {
    double us;
    Limit limit;
  };
  [[nodiscard]] Wish wish() const;
  /// By what factor the interval may grow at once.
  [[nodiscard]] double widening_max() const;
  void judge(const Wish& wanted);
  [[nodiscard]] std::string explain() const;
  [[nodiscard]] bool lag_is_held() const;
  [[nodiscard]] bool budget_is_held() const;

  CadenceOptions options_;
  std::chrono::microseconds interval_;
  Limit limit_ = Limit::target_lag;
  Smoothed pause_, cpu_, latency_, period_, pages_, taking_;
  double newest_pause_us_ = 0;
  bool holds_ = true;
  unsigned contrary_ = 0;  ///< epochs in a row that say otherwise than holds_
  std::string why_;        ///< of the newest epoch that did not hold all
};

[[nodiscard]] const char* text_of(Cadence::Limit limit);

}  // namespace vmshadow::capture
