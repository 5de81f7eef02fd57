// As much of HTTP/1 as a scrape needs: one GET, one answer, the end. Pure; metrics_server.h carries
// it.
#pragma once

#include <cstddef>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

namespace vmshadow::app {

/// What a request's line and headers may be together.
inline constexpr std::size_t kHttpRequestBytesMax = 8192;

/// The whole answer to what a peer has sent so far, or nullopt while the request's headers are not
/// complete. GET and HEAD of /metrics get `page` (called only then), all else an error. Nothing but
/// the request's first line is looked at.
[[nodiscard]] std::optional<std::string> answer_scrape(std::string_view so_far,
                                                       const std::function<std::string()>& page);

}  // namespace vmshadow::app
