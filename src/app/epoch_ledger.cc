#include "app/epoch_ledger.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/statistics.h"

namespace vmshadow::app {
namespace {

constexpr std::chrono::milliseconds kTerminalEvery{500};

double ms(std::chrono::microseconds d) { return static_cast<double>(d.count()) / 1000.0; }
double mib(std::uint64_t bytes) { return static_cast<double>(bytes) / (1024.0 * 1024.0); }

void keep(std::deque<double>& samples, double value) {
  samples.push_back(value);
  if (samples.size() > EpochLedger::kSamplesMax) samples.pop_front();
}

double quantile_of(const std::deque<double>& samples, double q) {
  return quantile({samples.begin(), samples.end()}, q);
}

nlohmann::json optional_ms(std::optional<std::chrono::microseconds> d) {
  return d ? nlohmann::json(ms(*d)) : nlohmann::json(nullptr);
}

}  // namespace

EpochLedger::EpochLedger(ReportStyle style, std::FILE* out) : style_(style), out_(out) {}

void EpochLedger::taken(const EpochStats& stats) {
  const std::lock_guard lock(mutex_);
  const auto early = early_.find(stats.epoch);
  if (early == early_.end()) {
    taken_.emplace(stats.epoch, stats);
    return;
  }
  report(stats, early->second);
  early_.erase(early);
}

void EpochLedger::committed(const ship::CommittedEpoch& epoch) {
  const std::lock_guard lock(mutex_);
  const auto taken = taken_.find(epoch.epoch);
  if (taken == taken_.end()) {
    early_.emplace(epoch.epoch, epoch);
    return;
  }
  report(taken->second, epoch);
  taken_.erase(taken);
}

void EpochLedger::report(const EpochStats& stats, const ship::CommittedEpoch& epoch) {
  const bool full_pass = totals_.epochs == 0;
  ++totals_.epochs;
  if (full_pass) totals_.first = stats.epoch;
  totals_.last = stats.epoch;
  totals_.captured_pages += epoch.encoded.captured_pages;
  totals_.data_pages += epoch.encoded.data_pages;
  totals_.zero_pages += epoch.encoded.zero_pages;
  totals_.unchanged_pages += epoch.encoded.unchanged_pages;
  totals_.raw_bytes += epoch.encoded.captured_pages * kPageBytes;
  totals_.shipped_bytes += epoch.encoded.record_bytes;
  if (full_pass) {
    totals_.full_pass_ms = ms(stats.ram);
    totals_.full_pass_pause_ms = stats.pause ? ms(*stats.pause) : 0;
  } else {
    if (stats.pause) keep(pause_ms_, ms(*stats.pause));
    keep(lag_ms_, ms(epoch.peak_lag));
    keep(commit_ms_, ms(epoch.commit_latency));
  }

  if (style_ == ReportStyle::json_lines) {
    const nlohmann::json line{{"event", "epoch"},
                              {"epoch", stats.epoch.value},
                              {"full", epoch.encoded.full},
                              {"pages", stats.pages},
                              {"zero_pages", stats.zero_pages},
                              {"unchanged_pages", epoch.encoded.unchanged_pages},
                              {"raw_bytes", epoch.encoded.captured_pages * kPageBytes},
                              {"shipped_bytes", epoch.encoded.record_bytes},
                              {"device_bytes", stats.device_bytes},
                              {"pause_ms", optional_ms(stats.pause)},
                              {"stop_ms", ms(stats.stop)},
                              {"ram_ms", ms(stats.ram)},
                              {"device_ms", ms(stats.device)},
                              {"commit_ms", ms(epoch.commit_latency)},
                              {"lag_ms", ms(epoch.peak_lag)},
                              {"store_sync_ms", ms(epoch.store_sync)}};
    fmt::print(out_, "{}\n", line.dump());
    std::fflush(out_);
  } else if (style_ == ReportStyle::terminal) {
    const auto now = std::chrono::steady_clock::now();
    if (now - last_line_ < kTerminalEvery) return;
    last_line_ = now;
    fmt::print(out_, "\repoch {:>6}  lag {:>7.1f} ms  pause {:>6} ms  {:>6} pages  {:>8.2f} MiB  ",
               stats.epoch.value, ms(epoch.peak_lag),
               stats.pause ? fmt::format("{:.2f}", ms(*stats.pause)) : "?", stats.pages,
               mib(epoch.encoded.record_bytes));
    std::fflush(out_);
  }
}

void EpochLedger::tick(std::optional<std::chrono::microseconds> lag) {
  const std::lock_guard lock(mutex_);
  if (style_ == ReportStyle::json_lines) {
    fmt::print(out_, "{}\n", nlohmann::json{{"event", "lag"}, {"lag_ms", optional_ms(lag)}}.dump());
    std::fflush(out_);
    return;
  }
  // A commit has just written the line: leave it.
  const auto now = std::chrono::steady_clock::now();
  if (style_ != ReportStyle::terminal || now - last_line_ < kTerminalEvery || !lag) return;
  last_line_ = now;
  fmt::print(out_, "\repoch {:>6}  lag {:>7.1f} ms  (no commit since)                        ",
             totals_.last ? totals_.last->value : 0, ms(*lag));
  std::fflush(out_);
}

void EpochLedger::asking_store(const ship::BaseProgress& progress) {
  const std::lock_guard lock(mutex_);
  if (style_ == ReportStyle::json_lines) {
    const nlohmann::json line{
        {"event", "asking_store"}, {"pages", progress.pages}, {"of_at_most", progress.of}};
    fmt::print(out_, "{}\n", line.dump());
  } else if (style_ == ReportStyle::terminal) {
    fmt::print(out_, "\rasking the store what it has: {} of at most {} pages  ", progress.pages,
               progress.of);
  }
  std::fflush(out_);
}

void EpochLedger::first_pass(std::uint64_t pages) {
  const std::lock_guard lock(mutex_);
  if (style_ == ReportStyle::json_lines) {
    fmt::print(out_, "{}\n", nlohmann::json{{"event", "first_pass"}, {"pages", pages}}.dump());
  } else if (style_ == ReportStyle::terminal) {
    fmt::print(out_, "\rfirst pass: {} pages, {:.0f} MiB  ", pages, mib(pages * kPageBytes));
  }
  std::fflush(out_);
}

EpochLedger::Summary EpochLedger::summary() const {
  const std::lock_guard lock(mutex_);
  Summary summary = totals_;
  summary.pauses = pause_ms_.size();
  summary.pause_ms_p50 = quantile_of(pause_ms_, 0.5);
  summary.pause_ms_p99 = quantile_of(pause_ms_, 0.99);
  summary.pause_ms_max = quantile_of(pause_ms_, 1.0);
  summary.lag_ms_p50 = quantile_of(lag_ms_, 0.5);
  summary.lag_ms_p99 = quantile_of(lag_ms_, 0.99);
  summary.commit_ms_p50 = quantile_of(commit_ms_, 0.5);
  summary.commit_ms_p99 = quantile_of(commit_ms_, 0.99);
  return summary;
}

void EpochLedger::print_summary(std::optional<std::chrono::microseconds> lag) const {
  const Summary s = summary();
  if (style_ == ReportStyle::json_lines) {
    nlohmann::json line{{"event", "summary"},
                        {"epochs", s.epochs},
                        {"captured_pages", s.captured_pages},
                        {"data_pages", s.data_pages},
                        {"zero_pages", s.zero_pages},
                        {"unchanged_pages", s.unchanged_pages},
                        {"raw_bytes", s.raw_bytes},
                        {"shipped_bytes", s.shipped_bytes},
                        {"pauses", s.pauses},
                        {"pause_ms_p50", s.pause_ms_p50},
                        {"pause_ms_p99", s.pause_ms_p99},
                        {"pause_ms_max", s.pause_ms_max},
                        {"lag_ms_p50", s.lag_ms_p50},
                        {"lag_ms_p99", s.lag_ms_p99},
                        {"commit_ms_p50", s.commit_ms_p50},
                        {"commit_ms_p99", s.commit_ms_p99},
                        {"full_pass_ms", s.full_pass_ms},
                        {"full_pass_pause_ms", s.full_pass_pause_ms},
                        {"lag_now_ms", optional_ms(lag)}};
    line["last_epoch"] = s.last ? nlohmann::json(s.last->value) : nlohmann::json(nullptr);
    fmt::print(out_, "{}\n", line.dump());
    std::fflush(out_);
    return;
  }
  if (style_ == ReportStyle::quiet || s.epochs == 0) return;
  fmt::print(
      out_,
      "\n{} epochs committed ({} to {}); {} pages captured, {:.1f} MiB shipped for {:.1f} MiB\n"
      "pause p50 {:.2f} p99 {:.2f} max {:.2f} ms ({} pauses); first pass {:.0f} ms, of it "
      "paused {:.2f} ms\n"
      "lag   p50 {:.1f} p99 {:.1f} ms (just before each commit); cut to durable p50 {:.1f} "
      "p99 {:.1f} ms\n",
      s.epochs, s.first->value, s.last->value, s.captured_pages, mib(s.shipped_bytes),
      mib(s.raw_bytes), s.pause_ms_p50, s.pause_ms_p99, s.pause_ms_max, s.pauses, s.full_pass_ms,
      s.full_pass_pause_ms, s.lag_ms_p50, s.lag_ms_p99, s.commit_ms_p50, s.commit_ms_p99);
}

}  // namespace vmshadow::app
