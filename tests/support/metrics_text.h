// A strict reader of Prometheus' text format (version 0.0.4): every family has its HELP and TYPE
// before its samples, names and labels are well-formed, no series comes twice, a histogram's
// buckets rise and end in +Inf. What is not so throws a std::runtime_error that quotes the line.
#pragma once

#include <cmath>
#include <cstdlib>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace vmshadow::test {

class MetricsText {
 public:
  using Labels = std::map<std::string, std::string>;
  struct Sample {
    std::string name;  ///< of the series: a histogram's has a suffix
    Labels labels;
    double value{};
  };
  struct Family {
    std::string help;
    std::string type;
    std::vector<Sample> samples;
  };

  explicit MetricsText(const std::string& text) {
    if (!text.empty() && text.back() != '\n') fail("the last line has no end", text);
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) read(line);
    for (const auto& [name, family] : families_) check(name, family);
  }

  [[nodiscard]] const std::map<std::string, Family>& families() const { return families_; }
  [[nodiscard]] bool has(const std::string& family) const { return families_.contains(family); }
  /// Of the one series `name` whose labels include these.
  [[nodiscard]] double value(const std::string& name, const Labels& labels = {}) const {
    const Sample* found = nullptr;
    for (const auto& [family_name, family] : families_) {
      for (const Sample& sample : family.samples) {
        if (sample.name != name || !includes(sample.labels, labels)) continue;
        if (found != nullptr) fail("more than one series", name);
        found = &sample;
      }
    }
    if (found == nullptr) fail("no such series", name);
    return found->value;
  }

 private:
  [[noreturn]] static void fail(const std::string& what, const std::string& line) {
    throw std::runtime_error("metrics: " + what + ": " + line);
  }
  static bool includes(const Labels& all, const Labels& some) {
    for (const auto& [label, value] : some) {
      const auto found = all.find(label);
      if (found == all.end() || found->second != value) return false;
    }
    return true;
  }

  void read(const std::string& line) {
    static const std::regex meta(R"(# (HELP|TYPE) ([a-zA-Z_:][a-zA-Z0-9_:]*) (.+))");
    static const std::regex sample(
        R"re(([a-zA-Z_:][a-zA-Z0-9_:]*)(\{((?:[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\["\\n])*",?)*)\})? (\S+))re");
    std::smatch match;
    if (std::regex_match(line, match, meta)) {
      const bool help = match[1] == "HELP";
      if (help && families_.contains(match[2])) fail("a family comes twice", line);
      current_ = match[2];
      (help ? families_[current_].help : families_[current_].type) = match[3];
    } else if (std::regex_match(line, match, sample)) {
      add(match[1], match[3], match[4], line);
    } else {
      fail("not a line of the format", line);
    }
  }

  void add(const std::string& name, const std::string& label_text, const std::string& number,
           const std::string& line) {
    if (name.rfind(current_, 0) != 0) fail("a sample outside its family", line);
    Family& family = families_[current_];
    if (family.help.empty() || family.type.empty()) fail("HELP or TYPE is missing", line);
    Sample sample{name, labels_of(label_text), 0};
    char* end = nullptr;
    sample.value = std::strtod(number.c_str(), &end);
    if (*end != '\0' || std::isnan(sample.value)) fail("not a number", line);
    if (!series_.insert(name + "{" + label_text + "}").second) fail("a series comes twice", line);
    family.samples.push_back(std::move(sample));
  }

  static Labels labels_of(const std::string& text) {
    static const std::regex label(R"re(([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)")re");
    Labels labels;
    for (std::sregex_iterator it(text.begin(), text.end(), label), end; it != end; ++it) {
      labels[(*it)[1]] = (*it)[2];
    }
    return labels;
  }

  static void check(const std::string& name, const Family& family) {
    static const std::set<std::string> types = {"counter", "gauge", "histogram"};
    if (!types.contains(family.type)) fail("a type of its own", name);
    if (family.samples.empty()) fail("a family without samples", name);
    if (family.type != "histogram") {
      for (const Sample& sample : family.samples) {
        if (sample.name != name) fail("a name of its own", sample.name);
        if (family.type == "counter" && sample.value < 0) fail("a counter below 0", name);
      }
      return;
    }
    std::map<Labels, std::vector<std::pair<double, double>>> buckets;
    std::map<Labels, double> counts;
    for (const Sample& sample : family.samples) {
      Labels labels = sample.labels;
      if (sample.name == name + "_bucket") {
        const auto le = labels.extract("le");
        if (le.empty()) fail("a bucket without le", name);
        buckets[labels].emplace_back(
            le.mapped() == "+Inf" ? HUGE_VAL : std::strtod(le.mapped().c_str(), nullptr),
            sample.value);
      } else if (sample.name == name + "_count") {
        counts[labels] = sample.value;
      } else if (sample.name != name + "_sum") {
        fail("not of a histogram", sample.name);
      }
    }
    if (buckets.size() != counts.size()) fail("a histogram without buckets or count", name);
    for (const auto& [labels, series] : buckets) {
      for (std::size_t i = 1; i < series.size(); ++i) {
        if (series[i].first <= series[i - 1].first) fail("bounds that do not rise", name);
        if (series[i].second < series[i - 1].second) fail("counts that fall", name);
      }
      if (series.back().first != HUGE_VAL) fail("no +Inf", name);
      if (!counts.contains(labels) || counts.at(labels) != series.back().second) {
        fail("count and +Inf differ", name);
      }
    }
  }

  std::map<std::string, Family> families_;
  std::set<std::string> series_;
  std::string current_;
};

}  // namespace vmshadow::test
