#include "app/metrics_page.h"

#include <prometheus/metric_family.h>
#include <prometheus/text_serializer.h>

#include <algorithm>
#include <chrono>
#include <cstdint>

#include "base/assert.h"

namespace vmshadow::app {
namespace {

double seconds(std::chrono::microseconds d) { return std::chrono::duration<double>(d).count(); }

}  // namespace

struct MetricsPage::Families {
  std::vector<prometheus::MetricFamily> all;

  prometheus::ClientMetric& add(const std::string& name, const std::string& help,
                                prometheus::MetricType type, const Labels& common,
                                const Labels& labels) {
    auto family =
        std::find_if(all.begin(), all.end(), [&](const auto& other) { return other.name == name; });
    if (family == all.end())
      family = all.insert(all.end(), prometheus::MetricFamily{name, help, type, {}});
    VMSHADOW_ASSERT(family->type == type);
    prometheus::ClientMetric& metric = family->metric.emplace_back();
    for (const Labels* some : {&common, &labels}) {
      for (const auto& [label, value] : *some) metric.label.push_back({label, value});
    }
    return metric;
  }
};

MetricsPage::MetricsPage(Labels common)
    : common_(std::move(common)), families_(std::make_unique<Families>()) {}
MetricsPage::~MetricsPage() = default;

void MetricsPage::counter(const std::string& name, const std::string& help, double value,
                          const Labels& labels) {
  families_->add(name, help, prometheus::MetricType::Counter, common_, labels).counter.value =
      value;
}

void MetricsPage::gauge(const std::string& name, const std::string& help, double value,
                        const Labels& labels) {
  families_->add(name, help, prometheus::MetricType::Gauge, common_, labels).gauge.value = value;
}

void MetricsPage::histogram(const std::string& name, const std::string& help,
                            const DurationBuckets::Counts& counts, const Labels& labels) {
  auto& histogram =
      families_->add(name, help, prometheus::MetricType::Histogram, common_, labels).histogram;
  std::uint64_t cumulative = 0;
  for (std::size_t i = 0; i < DurationBuckets::kBounds; ++i) {
    cumulative += counts.buckets[i];
    histogram.bucket.push_back({cumulative, seconds(DurationBuckets::bound(i))});
  }
  // The serializer adds the bucket of all, +Inf.
  histogram.sample_count = counts.count();
  histogram.sample_sum = seconds(counts.sum);
}

void MetricsPage::as_of(WallTime now) {
  gauge("vmshadow_as_of_timestamp_seconds",
        "When these figures were read, in seconds since 1970: those of a file that is not written "
        "any more do not hold.",
        static_cast<double>(now.ns) / 1e9);
}

std::string MetricsPage::text() const {
  return prometheus::TextSerializer().Serialize(families_->all);
}

}  // namespace vmshadow::app
