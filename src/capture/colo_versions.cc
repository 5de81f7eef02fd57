#include "capture/colo_versions.h"

#include <algorithm>
#include <iterator>
#include <tuple>

namespace vmshadow::capture {
namespace {

using enum StreamCommand;

// The return path is opened only where its capability is on; we switch it off, but a QEMU that
// insists shall be understood (see ColoSource: it then waits for SHUT).
constexpr StreamCommands kUpTo9 = {open_return_path, ping, enable_colo};
// SWITCHOVER_START: in front of the last RAM section, and of each checkpoint's RAM; machine types
// of 9.2 and older do not send it.
constexpr StreamCommands kSince10 = {open_return_path, ping, enable_colo, switchover_start};
constexpr StreamCommands kNone = {};
constexpr StreamCommands kSwitchover = {switchover_start};

constexpr const char* kTooOld =
    "is too old for COLO epochs; 5.0 or newer is needed (7.2 is tested)";
// The migration completes, for its state on the way there was changed, and the VM stays paused.
constexpr const char* kBroken =
    "has a broken COLO that would leave the VM paused; use 10.0.7 or newer of the 10.0 series, or "
    "another series";

// Read in the sources: 7.2, 10.0.13, 10.2.2. Run: 7.2 (all tests); 10.0.13 and 11.1.3 by hand under
// TCG (attach, epochs, takeover). In 8 and 9 nothing is known to differ from 7.2; where exactly
// 11's demands began was not looked into.
constexpr ColoVersion kVersions[] = {
    {0, 0, 0, kNone, kNone, false, false, kTooOld},
    {5, 0, 0, kUpTo9, kNone, false, false, nullptr},
    {10, 0, 0, kSince10, kSwitchover, false, false, kBroken},
    {10, 0, 7, kSince10, kSwitchover, false, false, nullptr},
    {10, 1, 0, kSince10, kSwitchover, false, false, kBroken},
    {10, 2, 0, kSince10, kSwitchover, false, false, nullptr},
    {11, 0, 0, kSince10, kSwitchover, true, true, nullptr},
};

}  // namespace

std::span<const ColoVersion> colo_versions() { return kVersions; }

const ColoVersion& colo_version(const qmp::QemuVersion& version) {
  const auto number = std::tuple(version.major, version.minor, version.micro);
  const auto* const newer = std::find_if(
      std::next(std::begin(kVersions)), std::end(kVersions),
      [&](const auto& row) { return std::tuple(row.major, row.minor, row.micro) > number; });
  return *std::prev(newer);
}

}  // namespace vmshadow::capture
