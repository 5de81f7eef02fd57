#include "app/epoch_ledger.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <spdlog/spdlog.h>

namespace vmshadow::app {
namespace {

constexpr std::chrono::milliseconds kTerminalEvery{500};

double ms(std::chrono::microseconds d) { return static_cast<double>(d.count()) / 1000.0; }
double mib(std::uint64_t bytes) { return static_cast<double>(bytes) / (1024.0 * 1024.0); }

EpochLedger::Spread spread_of(const DurationHistogram& durations) {
  return {durations.count(), ms(durations.quantile(0.5)), ms(durations.quantile(0.99)),
          ms(durations.longest())};
}

nlohmann::json json_of(const EpochLedger::Spread& spread) {
  return {{"count", spread.count},
          {"p50_ms", spread.p50_ms},
          {"p99_ms", spread.p99_ms},
          {"max_ms", spread.max_ms}};
}

nlohmann::json optional_ms(std::optional<std::chrono::microseconds> d) {
  return d ? nlohmann::json(ms(*d)) : nlohmann::json(nullptr);
}

nlohmann::json optional_text(const std::optional<std::string>& text) {
  return text ? nlohmann::json(*text) : nlohmann::json(nullptr);
}

nlohmann::json json_of(const PaceReport& pace) {
  nlohmann::json json{{"interval_ms", ms(pace.interval)},
                      {"dirty_pages_per_s", pace.dirty_pages_per_s}};
  json["pause_percent"] =
      pace.pause_share ? nlohmann::json(*pace.pause_share * 100) : nlohmann::json(nullptr);
  if (pace.passes) {
    json["pass_ms"] = ms(pace.passes->pass);
    json["holds_lag_ms"] = ms(pace.passes->lag);
  }
  if (!pace.asked_for) return json;
  json["target_lag_ms"] = ms(pace.asked_for->target_lag);
  json["pause_budget_percent"] = pace.asked_for->pause_budget * 100;
  json["cpu_budget_percent"] = pace.asked_for->cpu_budget
                                   ? nlohmann::json(*pace.asked_for->cpu_budget * 100)
                                   : nlohmann::json(nullptr);
  json["limit"] = text_of(pace.limit);
  json["held"] = !pace.cannot_hold;
  json["why"] = optional_text(pace.cannot_hold);
  return json;
}

std::string pace_text(const PaceReport& pace) {
  std::string text = fmt::format("an epoch every {:.0f} ms", ms(pace.interval));
  if (pace.pause_share)
    text += fmt::format(", paused {:.2f} % of the time", *pace.pause_share * 100);
  text += fmt::format(", {:.0f} dirty pages/s", pace.dirty_pages_per_s);
  if (pace.passes) {
    text += fmt::format("\na full pass takes {:.0f} ms: the lag that can be held is {:.0f} ms",
                        ms(pace.passes->pass), ms(pace.passes->lag));
  }
  if (pace.asked_for) text += fmt::format(" (decided by: {})", text_of(pace.limit));
  if (pace.cannot_hold) text += "\n" + *pace.cannot_hold;
  return text;
}

}  // namespace

EpochLedger::EpochLedger(ReportStyle style, std::FILE* out, SidecarFigures& figures)
    : style_(style), out_(out), figures_(figures) {}

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

void EpochLedger::paced(const PaceReport& pace) {
  const std::lock_guard lock(mutex_);
  const bool held_before = !pace_.cannot_hold;
  pace_ = pace;
  figures_.paced(pace);
  if (held_before == !pace_.cannot_hold) return;
  if (style_ == ReportStyle::json_lines) {
    nlohmann::json line = json_of(pace_);
    line["event"] = "cadence";
    fmt::print(out_, "{}\n", line.dump());
    std::fflush(out_);
  } else if (pace_.cannot_hold) {
    spdlog::warn("{}", *pace_.cannot_hold);
  } else {
    spdlog::info("the target lag and the budgets are held again");
  }
}

bool EpochLedger::count(const EpochStats& stats, const ship::CommittedEpoch& epoch) {
  const bool first_pass = totals_.epochs == 0;
  figures_.add(stats, epoch, first_pass);
  ++totals_.epochs;
  if (first_pass) totals_.first = stats.epoch;
  totals_.last = stats.epoch;
  totals_.captured_pages += epoch.encoded.captured_pages;
  totals_.data_pages += epoch.encoded.data_pages;
  totals_.zero_pages += epoch.encoded.zero_pages;
  totals_.unchanged_pages += epoch.encoded.unchanged_pages;
  totals_.raw_bytes += epoch.encoded.captured_pages * kPageBytes;
  totals_.shipped_bytes += epoch.encoded.record_bytes;
  if (first_pass) {
    totals_.full_pass_ms = ms(stats.ram);
    totals_.full_pass_pause_ms = stats.pause ? ms(*stats.pause) : 0;
    return true;
  }
  lag_.add(epoch.peak_lag);
  commit_.add(epoch.commit_latency);
  if (!stats.pause) return false;
  pause_.add(*stats.pause);
  for (std::size_t i = 0; i < kPhases; ++i) phases_[i].add(stats.*kEpochPhases[i].took);
  return false;
}

void EpochLedger::report(const EpochStats& stats, const ship::CommittedEpoch& epoch) {
  const bool first_pass = count(stats, epoch);
  if (style_ == ReportStyle::json_lines) {
    nlohmann::json line{{"event", "epoch"},
                        {"epoch", stats.epoch.value},
                        {"first_pass", first_pass},
                        {"full", epoch.encoded.full},
                        {"pages", stats.pages},
                        {"zero_pages", stats.zero_pages},
                        {"disk_pages", stats.disk_pages},
                        {"disks_ms", ms(stats.disks)},
                        {"unchanged_pages", epoch.encoded.unchanged_pages},
                        {"raw_bytes", epoch.encoded.captured_pages * kPageBytes},
                        {"shipped_bytes", epoch.encoded.record_bytes},
                        {"device_bytes", stats.device_bytes},
                        {"pause_ms", optional_ms(stats.pause)},
                        {"commit_ms", ms(epoch.commit_latency)},
                        {"lag_ms", ms(epoch.peak_lag)},
                        {"store_sync_ms", ms(epoch.store_sync)},
                        {"interval_ms", ms(pace_.interval)}};
    if (pace_.asked_for) line["limit"] = text_of(pace_.limit);
    if (stats.pass) line["pass_ms"] = ms(*stats.pass);
    if (pace_.passes) line["holds_lag_ms"] = ms(pace_.passes->lag);
    for (const EpochPhase& phase : kEpochPhases)
      line[std::string(phase.name) + "_ms"] = ms(stats.*phase.took);
    fmt::print(out_, "{}\n", line.dump());
    std::fflush(out_);
  } else if (style_ == ReportStyle::terminal) {
    const auto now = std::chrono::steady_clock::now();
    if (now - last_line_ < kTerminalEvery) return;
    last_line_ = now;
    fmt::print(out_,
               "\repoch {:>6}  every {:>5.0f} ms  lag {:>7.1f} ms{}  pause {:>6} ms  {:>6} pages  "
               "{:>8.2f} MiB  ",
               stats.epoch.value, ms(pace_.interval), ms(epoch.peak_lag),
               pace_.passes ? fmt::format(" (can hold {:.0f})", ms(pace_.passes->lag)) : "",
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

void EpochLedger::copying_disks(std::uint64_t done, std::uint64_t total) {
  const std::lock_guard lock(mutex_);
  if (style_ == ReportStyle::json_lines) {
    const nlohmann::json line{{"event", "copying_disks"}, {"bytes", done}, {"of", total}};
    fmt::print(out_, "{}\n", line.dump());
  } else if (style_ == ReportStyle::terminal) {
    fmt::print(out_, "\rcopying disks: {:.0f} of {:.0f} MiB  ", mib(done), mib(total));
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
  summary.pause = spread_of(pause_);
  summary.lag = spread_of(lag_);
  summary.commit = spread_of(commit_);
  for (std::size_t i = 0; i < kPhases; ++i) summary.phases[i] = spread_of(phases_[i]);
  return summary;
}

void EpochLedger::print_summary(std::optional<std::chrono::microseconds> lag) const {
  const Summary s = summary();
  const PaceReport pace = [&] {
    const std::lock_guard lock(mutex_);
    return pace_;
  }();
  if (style_ == ReportStyle::json_lines) {
    nlohmann::json line{{"event", "summary"},
                        {"epochs", s.epochs},
                        {"captured_pages", s.captured_pages},
                        {"data_pages", s.data_pages},
                        {"zero_pages", s.zero_pages},
                        {"unchanged_pages", s.unchanged_pages},
                        {"raw_bytes", s.raw_bytes},
                        {"shipped_bytes", s.shipped_bytes},
                        {"pauses", s.pause.count},
                        {"pause_ms_p50", s.pause.p50_ms},
                        {"pause_ms_p99", s.pause.p99_ms},
                        {"pause_ms_max", s.pause.max_ms},
                        {"lag_ms_p50", s.lag.p50_ms},
                        {"lag_ms_p99", s.lag.p99_ms},
                        {"commit_ms_p50", s.commit.p50_ms},
                        {"commit_ms_p99", s.commit.p99_ms},
                        {"full_pass_ms", s.full_pass_ms},
                        {"full_pass_pause_ms", s.full_pass_pause_ms},
                        {"lag_now_ms", optional_ms(lag)}};
    for (std::size_t i = 0; i < kPhases; ++i) {
      line["phases"][std::string(kEpochPhases[i].name)] = json_of(s.phases[i]);
    }
    line["cadence"] = json_of(pace);
    line["last_epoch"] = s.last ? nlohmann::json(s.last->value) : nlohmann::json(nullptr);
    fmt::print(out_, "{}\n", line.dump());
    std::fflush(out_);
    return;
  }
  if (style_ == ReportStyle::quiet || s.epochs == 0) return;
  std::string phases;
  for (std::size_t i = 0; i < kPhases; ++i) {
    phases += fmt::format("{}{} {:.2f}/{:.2f}", i == 0 ? "" : ", ", kEpochPhases[i].name,
                          s.phases[i].p50_ms, s.phases[i].p99_ms);
  }
  fmt::print(
      out_,
      "\n{} epochs committed ({} to {}); {} pages captured, {:.1f} MiB shipped for {:.1f} MiB\n"
      "pause p50 {:.2f} p99 {:.2f} max {:.2f} ms ({} pauses); first pass {:.0f} ms, of it "
      "paused {:.2f} ms\n"
      "phases of an epoch, p50/p99 ms: {}\n"
      "lag   p50 {:.1f} p99 {:.1f} ms (just before each commit); cut to durable p50 {:.1f} "
      "p99 {:.1f} ms\n"
      "{}\n",
      s.epochs, s.first->value, s.last->value, s.captured_pages, mib(s.shipped_bytes),
      mib(s.raw_bytes), s.pause.p50_ms, s.pause.p99_ms, s.pause.max_ms, s.pause.count,
      s.full_pass_ms, s.full_pass_pause_ms, phases, s.lag.p50_ms, s.lag.p99_ms, s.commit.p50_ms,
      s.commit.p99_ms, pace_text(pace));
}

}  // namespace vmshadow::app
