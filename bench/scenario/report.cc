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

void Report::list_item(std::string key, Report item) {
  Row row{Row::Kind::list_item, std::move(key), {}, {}, {}, {}};
  row.part.push_back(std::move(item));
  rows_.push_back(std::move(row));
}

void Report::object(std::string key, Report part) {
  Row row{Row::Kind::object, std::move(key), {}, {}, {}, {}};
  row.part.push_back(std::move(part));
  rows_.push_back(std::move(row));
}

void Report::put_into(nlohmann::ordered_json& object) const {
  nlohmann::ordered_json why = nlohmann::ordered_json::object();
  for (const Row& row : rows_) {
    switch (row.kind) {
      case Row::Kind::heading:
        break;
      case Row::Kind::text:
        object[row.key] = row.words;
        break;
      case Row::Kind::figure:
        object[row.key] =
            row.value ? nlohmann::ordered_json(rounded(*row.value)) : nlohmann::ordered_json();
        if (!row.value) why[row.key] = row.words;
        break;
      case Row::Kind::list_item:
        row.part.front().put_into(object[row.key].emplace_back());
        break;
      case Row::Kind::object:
        row.part.front().put_into(object[row.key]);
        break;
    }
  }
  if (!why.empty()) object["why_null"] = std::move(why);
}

std::string Report::json() const {
  nlohmann::ordered_json object;
  object["scenario"] = name_;
  put_into(object);
  if (!object.contains("why_null")) object["why_null"] = nlohmann::ordered_json::object();
  return object.dump(1);
}

std::string Report::table(const std::string& prefix) const {
  std::string out;
  for (const Row& row : rows_) {
    switch (row.kind) {
      case Row::Kind::list_item:
        out += fmt::format("\n{}\n{}", row.part.front().name_, row.part.front().table(prefix));
        break;
      case Row::Kind::object:
        out += row.part.front().table(prefix + row.key + ".");
        break;
      case Row::Kind::heading:
        out += fmt::format("\n{}\n", row.key);
        break;
      case Row::Kind::text:
        out += fmt::format("  {:<34} {}\n", prefix + row.key, row.words);
        break;
      case Row::Kind::figure: {
        const std::string value = row.value
                                      ? fmt::format("{:>12} {}", rounded(*row.value), row.unit)
                                      : fmt::format("{:>12} ({})", "none", row.words);
        const std::string goal = row.goal.empty() ? "" : fmt::format("   (goal {})", row.goal);
        out += fmt::format("  {:<34} {}{}\n", prefix + row.key, value, goal);
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
