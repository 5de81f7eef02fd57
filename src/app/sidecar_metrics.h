// A sidecar's metrics; docs/metrics.md has the list.
#pragma once

#include <chrono>
#include <string>

#include <vmshadow/clock.h>

#include "app/sidecar_figures.h"

namespace vmshadow::app {

/// What of a sidecar does not change.
struct SidecarFacts {
  std::string vm_name;
  std::chrono::milliseconds pause_deadline{};
};

/// The page as it is now. What is not known yet (the lag before the first commit) is left out.
[[nodiscard]] std::string sidecar_metrics(const SidecarFigures& figures, const SidecarFacts& facts,
                                          const Clock& clock);

}  // namespace vmshadow::app
