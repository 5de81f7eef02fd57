// The options that say where a program's metrics are to be had, the same for all.
#pragma once

#include <CLI/CLI.hpp>

#include <optional>
#include <string>

#include <vmshadow/result.h>

#include "app/metrics_server.h"

namespace vmshadow::app {

struct MetricsOptions {
  std::string listen;
  std::string file;
};

/// --metrics and --metrics-file.
void add_metrics_options(CLI::App& cli, MetricsOptions& options);

/// What they ask for; nullopt: no metrics. Errc::invalid_argument, naming the option: to be asked
/// before a program does anything.
[[nodiscard]] Result<std::optional<MetricsServer::Options>> metrics_server_options(
    const MetricsOptions& options);

}  // namespace vmshadow::app
