#include "app/metrics_options.h"

#include <fmt/format.h>

#include <utility>

namespace vmshadow::app {
namespace {

/// "[ADDRESS:]PORT"; without an address, this host's own programs alone.
Result<io::TcpAddress> parse_listen(const std::string& text) {
  auto address =
      io::parse_tcp_address(text.find(':') == std::string::npos ? "127.0.0.1:" + text : text);
  if (address) return address;
  return fail(
      Errc::invalid_argument,
      fmt::format("--metrics: '{}' is not [ADDRESS:]PORT, such as 9460 or [::1]:9460", text));
}

}  // namespace

void add_metrics_options(CLI::App& cli, MetricsOptions& options) {
  cli.add_option("--metrics", options.listen,
                 "[ADDRESS:]PORT to serve Prometheus metrics on, at /metrics; without an address "
                 "on 127.0.0.1; port 0 picks one, and says which");
  cli.add_option("--metrics-file", options.file,
                 "a file to write them to every 10 seconds, such as one in node_exporter's "
                 "textfile directory; its name should end in .prom");
}

Result<std::optional<MetricsPlace>> open_metrics(const MetricsOptions& options) {
  if (options.listen.empty() && options.file.empty()) return std::optional<MetricsPlace>{};
  MetricsPlace place;
  place.server.file = options.file;
  if (!options.listen.empty()) {
    VMSHADOW_ASSIGN(io::TcpAddress address, parse_listen(options.listen));
    auto listener = io::listen_tcp(address);
    if (!listener) {
      Error error = std::move(listener).error().with_context("--metrics");
      if (error.code == Errc::in_use) {
        error.message += ": end what listens there, or choose another port";
      }
      return fail(std::move(error));
    }
    place.server.listener = *std::move(listener);
    VMSHADOW_ASSIGN(address.port, io::local_port(place.server.listener.get()));
    if (address.host.empty()) address.host = "0.0.0.0";
    place.url = fmt::format("http://{}/metrics", address.text());
  }
  return std::optional(std::move(place));
}

}  // namespace vmshadow::app
