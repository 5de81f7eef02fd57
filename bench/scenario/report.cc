#include "scenario/report.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <unistd.h>

#include <cmath>
#include <cstdio>

#include "base/assert.h"
#include "base/statistics.h"

namespace vmshadow::bench {
namespace {

/// Four significant digits, without an exponent.
double rounded(double value) {
  if (value == 0 || !std::isfinite(value)) return value;
  const double scale = std::pow(10.0, 3 - std::floor(std::log10(std::fabs(value))));
  return scale >= 1 ? std::round(value * scale) / scale : std::round(value);
}

}  // namespace

void Report::section(std::string title) {
  rows_.push_back({Row::Kind::heading, std::move(title), {}, {}, {}, {}});
}

void Report::figure(std::string key, double value, std::string unit, std::string goal) {
  rows_.push_back({Row::Kind::figure, std::move(key), value, std::move(unit), std::move(goal), {}});
}

void Report::missing(std::string key, std::string why, std::string goal) {
  rows_.push_back(
      {Row::Kind::figure, std::move(key), std::nullopt, {}, std::move(goal), std::move(why)});
}

void Report::figure_or_missing(std::string key, std::optional<double> value, std::string unit,
                               std::string why, std::string goal) {
  if (value) return figure(std::move(key), *value, std::move(unit), std::move(goal));
  missing(std::move(key), std::move(why), std::move(goal));
}

void Report::text(std::string key, std::string value) {
  rows_.push_back({Row::Kind::text, std::move(key), {}, {}, {}, std::move(value)});
}

std::optional<double> Report::value_of(const std::string& key) const {
  for (const Row& row : rows_) {
    if (row.kind == Row::Kind::figure && row.key == key) return row.value;
  }
  return std::nullopt;
}

std::string Report::json() const {
  nlohmann::ordered_json object;
  nlohmann::ordered_json why = nlohmann::ordered_json::object();
  object["scenario"] = scenario_;
  for (const Row& row : rows_) {
    if (row.kind == Row::Kind::heading) continue;
    if (row.kind == Row::Kind::text) {
      object[row.key] = row.words;
    } else if (row.value) {
      object[row.key] = rounded(*row.value);
    } else {
      object[row.key] = nullptr;
      why[row.key] = row.words;
    }
  }
  object["why_null"] = why;
  return object.dump(1);
}

std::string Report::table() const {
  std::string out;
  for (const Row& row : rows_) {
    switch (row.kind) {
      case Row::Kind::heading:
        out += fmt::format("\n{}\n", row.key);
        break;
      case Row::Kind::text:
        out += fmt::format("  {:<34} {}\n", row.key, row.words);
        break;
      case Row::Kind::figure: {
        const std::string value = row.value
                                      ? fmt::format("{:>12} {}", rounded(*row.value), row.unit)
                                      : fmt::format("{:>12} ({})", "none", row.words);
        const std::string goal = row.goal.empty() ? "" : fmt::format("   (goal {})", row.goal);
        out += fmt::format("  {:<34} {}{}\n", row.key, value, goal);
        break;
      }
    }
  }
  return out;
}

std::optional<double> median_ratio(const std::vector<double>& numerators,
                                   const std::vector<double>& denominators) {
  VMSHADOW_ASSERT(numerators.size() == denominators.size());
  if (numerators.size() < kPairsMin) return std::nullopt;
  std::vector<double> ratios;
  for (std::size_t i = 0; i < numerators.size(); ++i) {
    ratios.push_back(numerators[i] / denominators[i]);
  }
  return quantile(std::move(ratios), 0.5);
}

Progress::Progress() : shown_(::isatty(STDERR_FILENO) == 1) {}

Progress::~Progress() {
  if (shown_) fmt::print(stderr, "\r\x1b[K");
}

void Progress::step(const std::string& what) const {
  if (!shown_) return;
  fmt::print(stderr, "\r\x1b[K{} …", what);
  std::fflush(stderr);
}

void Progress::step(const std::string& what, std::size_t done, std::size_t of) const {
  step(fmt::format("{} {}/{}", what, done, of));
}

}  // namespace vmshadow::bench
