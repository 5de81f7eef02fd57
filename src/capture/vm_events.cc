#include "capture/vm_events.h"

#include <nlohmann/json.hpp>

#include <algorithm>

#include "qmp/commands.h"
#include "qmp/json_fields.h"

namespace vmshadow::capture {

void VmEvents::handle(const qmp::Event& event) {
  {
    const std::lock_guard lock(mutex_);
    if (event.name == "STOP") {
      ++stops_;
      last_stop_ = event.stamp;
      stopped_ = true;
    } else if (event.name == "RESUME") {
      last_resume_ = event.stamp;
      stopped_ = false;
    } else if (event.name == "MIGRATION") {
      const std::string* status = qmp::string_member(event.data, "status");
      if (status == nullptr || !qmp::is_at_rest(*status)) return;
      ++migrations_ended_;
    } else {
      return;
    }
  }
  changed_.notify_all();
}

std::uint64_t VmEvents::stops() const {
  const std::lock_guard lock(mutex_);
  return stops_;
}

bool VmEvents::is_stopped() const {
  const std::lock_guard lock(mutex_);
  return stopped_;
}

std::optional<VmEvents::Stamp> VmEvents::last_stop() const {
  const std::lock_guard lock(mutex_);
  if (stops_ == 0) return std::nullopt;
  return last_stop_;
}

std::uint64_t VmEvents::migrations_ended() const {
  const std::lock_guard lock(mutex_);
  return migrations_ended_;
}

bool VmEvents::wait_for_migration_end(std::uint64_t ended_before,
                                      std::chrono::milliseconds timeout) const {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, timeout, [&] { return migrations_ended_ > ended_before; });
}

VmEvents::Cut VmEvents::cut_since(std::uint64_t stops_before, const Clock& clock) const {
  Cut cut{clock.wall(), clock.monotonic()};
  const std::lock_guard lock(mutex_);
  if (stops_ <= stops_before) return cut;
  const auto ago =
      std::max(std::chrono::nanoseconds{cut.wall.ns} - last_stop_, std::chrono::nanoseconds{0});
  cut.wall.ns -= ago.count();
  cut.monotonic = cut.monotonic + -ago;
  return cut;
}

std::optional<std::chrono::microseconds> VmEvents::wait_for_pause(
    std::uint64_t stops_before, std::chrono::milliseconds timeout) const {
  std::unique_lock lock(mutex_);
  const bool resumed =
      changed_.wait_for(lock, timeout, [&] { return stops_ > stops_before && !stopped_; });
  if (!resumed || last_resume_ < last_stop_) return std::nullopt;
  return last_resume_ - last_stop_;
}

}  // namespace vmshadow::capture
