#include "app/metrics_options.h"

#include <fmt/format.h>

namespace vmshadow::app {
namespace {

constexpr const char* kLoopback = "127.0.0.1";

/// "[ADDRESS:]PORT"; without an address, this host's own programs alone.
Result<io::TcpAddress> parse_listen(const std::string& text) {
  auto address = io::parse_tcp_address(text.find(':') == std::string::npos ? ":" + text : text);
  if (!address) {
    return fail(
        Errc::invalid_argument,
        fmt::format("--metrics: '{}' is not [ADDRESS:]PORT, such as 9460 or [::1]:9460", text));
  }
  if (address->host.empty()) address->host = kLoopback;
  return address;
}

}  // namespace

void add_metrics_options(CLI::App& cli, MetricsOptions& options) {
  cli.add_option("--metrics", options.listen,
                 "[ADDRESS:]PORT to serve Prometheus metrics on, at /metrics; without an address "
                 "on 127.0.0.1, and on all of them with 0.0.0.0; port 0 picks one, and says which");
  cli.add_option("--metrics-file", options.file,
                 "a file to write them to every 10 seconds, such as one in node_exporter's "
                 "textfile directory; its name should end in .prom");
}

Result<std::optional<MetricsServer::Options>> metrics_server_options(
    const MetricsOptions& options) {
  if (options.listen.empty() && options.file.empty()) {
    return std::optional<MetricsServer::Options>{};
  }
  MetricsServer::Options server;
  server.file = options.file;
  if (!options.listen.empty()) {
    VMSHADOW_ASSIGN(server.listen, parse_listen(options.listen));
  }
  return std::optional(std::move(server));
}

}  // namespace vmshadow::app
