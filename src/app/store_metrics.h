// A store's metrics; docs/metrics.md has the list.
#pragma once

#include <string>

#include <vmshadow/clock.h>

#include "store/store.h"

namespace vmshadow::app {

[[nodiscard]] std::string store_metrics(const store::StoreStats& stats, std::size_t damaged_places,
                                        const Clock& clock);
[[nodiscard]] std::string store_metrics(const store::Store& store, const Clock& clock);

}  // namespace vmshadow::app
