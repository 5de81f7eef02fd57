#include "capture/guard_flags.h"

#include <cstring>
#include <string>

#include "base/assert.h"

namespace vmshadow::capture {

void GuardFlags::arm(const MigrationSettings& before) {
  const std::string text = before.text();
  VMSHADOW_ASSERT(text.size() < settings.size());
  std::memcpy(settings.data(), text.c_str(), text.size() + 1);
  migrating = true;
}

void GuardFlags::clear() {
  migrating = false;
  mirroring = false;
  resume_owed = false;
  stopped_since_ns = 0;
  protected_since_ns = 0;
  beats = 0;
}

}  // namespace vmshadow::capture
