#include "capture/capture_choice.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <string>
#include <utility>
#include <vector>

#include "capture/colo_probe.h"
#include "qmp/commands.h"

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

// A full pass completes a migration, and for that QEMU lets go of the disks, under their mirrors.
Result<bool> has_disks_to_protect(qmp::Session& session, const CaptureChoice& choice) {
  VMSHADOW_ASSIGN(const auto disks, qmp::query_writable_disks(session));
  if (disks.empty() || choice.kind == CaptureKind::colo) return !disks.empty();
  std::vector<std::string> names;
  for (const qmp::WritableDisk& disk : disks) names.push_back(disk.name);
  return fail(Errc::unsupported,
              fmt::format("it has disks that it writes to ({}), and full passes cannot take them: "
                          "they need COLO; --ignore-disks protects RAM and devices alone, whose "
                          "restore needs disks of the same moment from elsewhere",
                          fmt::join(names, ", ")));
}

}  // namespace vmshadow::capture
