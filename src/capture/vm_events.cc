#include "capture/vm_events.h"

#include <nlohmann/json.hpp>

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

std::optional<std::chrono::microseconds> VmEvents::wait_for_pause(
    std::uint64_t stops_before, std::chrono::milliseconds timeout) const {
  std::unique_lock lock(mutex_);
  const bool resumed =
      changed_.wait_for(lock, timeout, [&] { return stops_ > stops_before && !stopped_; });
  if (!resumed || last_resume_ < last_stop_) return std::nullopt;
  return last_resume_ - last_stop_;
}

}  // namespace vmshadow::capture
