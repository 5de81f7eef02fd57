#include "app/metrics_http.h"

#include <fmt/format.h>

namespace vmshadow::app {
namespace {

/// `status` may have further headers behind it, each begun with "\r\n".
std::string response(std::string_view status, std::string_view type, std::string_view body,
                     bool with_body = true) {
  return fmt::format(
      "HTTP/1.1 {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{}",
      status, type, body.size(), with_body ? body : std::string_view());
}

std::string refusal(std::string_view status, std::string_view why) {
  return response(status, "text/plain; charset=utf-8", why);
}

bool is_complete(std::string_view request) {
  return request.find("\r\n\r\n") != std::string_view::npos ||
         request.find("\n\n") != std::string_view::npos;
}

}  // namespace

std::optional<std::string> answer_scrape(std::string_view so_far,
                                         const std::function<std::string()>& page) {
  if (!is_complete(so_far)) {
    if (so_far.size() < kHttpRequestBytesMax) return std::nullopt;
    return refusal("431 Request Header Fields Too Large", "the request is too long\n");
  }
  std::string_view line = so_far.substr(0, so_far.find('\n'));
  if (line.ends_with('\r')) line.remove_suffix(1);
  const std::size_t first = line.find(' ');
  const std::size_t last = line.rfind(' ');
  if (first == std::string_view::npos || first == last ||
      !line.substr(last + 1).starts_with("HTTP/1.")) {
    return refusal("400 Bad Request", "not an HTTP/1 request\n");
  }
  const std::string_view method = line.substr(0, first);
  std::string_view path = line.substr(first + 1, last - first - 1);
  path = path.substr(0, path.find('?'));
  if (path != "/metrics") return refusal("404 Not Found", "metrics are at /metrics\n");
  if (method != "GET" && method != "HEAD") {
    return refusal("405 Method Not Allowed\r\nAllow: GET, HEAD", "metrics are read with GET\n");
  }
  return response("200 OK", "text/plain; version=0.0.4; charset=utf-8", page(), method == "GET");
}

}  // namespace vmshadow::app
