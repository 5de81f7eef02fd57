// The options that say where a program's metrics are to be had, the same for all.
#pragma once

#include <CLI/CLI.hpp>

#include <optional>
#include <string>

#include <vmshadow/result.h>

#include "app/metrics_server.h"
#include "io/socket.h"

namespace vmshadow::app {

struct MetricsOptions {
  std::string listen;
  std::string file;
};

/// --metrics and --metrics-file.
void add_metrics_options(CLI::App& cli, MetricsOptions& options);

/// Where metrics are served.
struct MetricsPlace {
  MetricsServer::Options server;
  std::string url;  ///< empty: by file alone
};
/// Listens. nullopt: no metrics are wanted. Errc::invalid_argument (not an address), Errc::in_use,
/// Errc::permission, …; the message names the option.
[[nodiscard]] Result<std::optional<MetricsPlace>> open_metrics(const MetricsOptions& options);

}  // namespace vmshadow::app
