#include "capture/capture_choice.h"

#include <fmt/format.h>

#include <utility>

#include "capture/colo_probe.h"

namespace vmshadow::capture {

Result<CaptureChoice> choose_capture(qmp::Session& session, std::optional<CaptureKind> wanted) {
  std::string because = "asked for";
  if (wanted != CaptureKind::full_pass) {
    const Status colo = check_colo(session);
    if (colo) return CaptureChoice{CaptureKind::colo, {}};
    if (wanted || colo.error().code != Errc::unsupported) return fail(colo.error());
    because = colo.error().message;
  }
  if (auto able = check_full_pass(session); !able) {
    return wanted ? fail(std::move(able).error())
                  : fail(Errc::unsupported, fmt::format("{}; nor can full passes be used: {}",
                                                        because, able.error().message));
  }
  return CaptureChoice{CaptureKind::full_pass,
                       fmt::format("{}; using full passes: each epoch reads all RAM, so that the "
                                   "lag cannot be shorter than a pass takes",
                                   because)};
}

}  // namespace vmshadow::capture
