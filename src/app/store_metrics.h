// A store's metrics; docs/metrics.md has the list.
#pragma once

#include <string>

#include "store/store.h"

namespace vmshadow::app {

[[nodiscard]] std::string store_metrics(const store::StoreStats& stats, std::size_t damaged_places);
[[nodiscard]] std::string store_metrics(const store::Store& store);

}  // namespace vmshadow::app
