// A page of figures in Prometheus' text format, and the only place that knows the library which
// writes it.
//
// Names follow Prometheus' conventions: base units at the end, "_total" on what only grows. A
// second figure of the same name, with other labels, joins the first. Used by one thread.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <vmshadow/clock.h>

#include "base/duration_buckets.h"

namespace vmshadow::app {

class MetricsPage {
 public:
  using Labels = std::vector<std::pair<std::string, std::string>>;

  /// `common`: labels of every figure.
  explicit MetricsPage(Labels common = {});
  ~MetricsPage();
  MetricsPage(const MetricsPage&) = delete;
  MetricsPage& operator=(const MetricsPage&) = delete;

  void counter(const std::string& name, const std::string& help, double value,
               const Labels& labels = {});
  void gauge(const std::string& name, const std::string& help, double value,
             const Labels& labels = {});
  /// In seconds.
  void histogram(const std::string& name, const std::string& help,
                 const DurationBuckets::Counts& counts, const Labels& labels = {});

  /// When the figures were read: whoever finds them in a file sees whether they still hold.
  void as_of(WallTime now);

  [[nodiscard]] std::string text() const;

 private:
  struct Families;
  const Labels common_;
  const std::unique_ptr<Families> families_;
};

}  // namespace vmshadow::app
