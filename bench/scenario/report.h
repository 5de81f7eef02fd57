// What a scenario found, for people (a table) and for programs (--json): the one place that prints.
//
// A figure without a value says why. The JSON is one object: key → number, text or null, and
// "why_null": key → reason. A report may hold others: in a list (the cases of one measurement), or
// as one key's object.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

namespace vmshadow::bench {

class Report {
 public:
  /// `name`: the scenario's, or what a part is about.
  explicit Report(std::string name) : name_(std::move(name)) {}

  /// What follows stands under this heading in the table.
  void section(std::string title);
  /// A figure measured. `goal` is shown beside it ("≥ 0.85"), empty if there is none.
  void figure(std::string key, double value, std::string unit, std::string goal = {});
  /// A figure that could not be measured.
  void missing(std::string key, std::string why, std::string goal = {});
  /// figure(), or missing() where there is no value.
  void figure_or_missing(std::string key, std::optional<double> value, std::string unit,
                         std::string why, std::string goal = {});
  /// A parameter or a setting, as text.
  void text(std::string key, std::string value);
  /// One more object in the list under `key`; in the table it stands under its own name.
  void list_item(std::string key, Report item);
  /// An object under `key`; in the table its keys follow a dot.
  void object(std::string key, Report part);

  [[nodiscard]] std::string json() const;
  [[nodiscard]] std::string table() const { return table({}); }
  /// The value of a figure; nullopt if it is missing or was never reported.
  [[nodiscard]] std::optional<double> value_of(const std::string& key) const;

 private:
  struct Row {
    enum class Kind { heading, figure, text, list_item, object } kind{};
    std::string key;  ///< or the heading
    std::optional<double> value;
    std::string unit;
    std::string goal;
    std::string words;           ///< the text, or why there is no value
    std::vector<Report> part{};  ///< one, of list_item and object
  };
  [[nodiscard]] std::string table(const std::string& prefix) const;
  void put_into(nlohmann::ordered_json& object) const;

  std::string name_;
  std::vector<Row> rows_;
};

/// A ratio is given only from this many interleaved pairs on.
inline constexpr std::size_t kPairsMin = 5;

/// The median over pairs of numerator / denominator; nullopt from fewer than kPairsMin pairs. The
/// two are of one length.
[[nodiscard]] std::optional<double> median_ratio(const std::vector<double>& numerators,
                                                 const std::vector<double>& denominators);

/// What a program is at, on stderr, where that is a terminal; else nothing.
class Progress {
 public:
  Progress();
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  void step(const std::string& what) const;
  /// "what 3/5".
  void step(const std::string& what, std::size_t done, std::size_t of) const;

 private:
  bool shown_;
};

}  // namespace vmshadow::bench
