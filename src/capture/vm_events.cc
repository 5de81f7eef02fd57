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
      if (mark_ != nullptr && *mark_ == 0) *mark_ = (clock_->monotonic() + allowed_).ns;
    } else if (event.name == "RESUME") {
      last_resume_ = event.stamp;
      stopped_ = false;
      if (mark_ != nullptr) *mark_ = 0;
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

void VmEvents::begin_marking(std::atomic<std::int64_t>& stopped_since_ns, const Clock& clock) {
  const std::lock_guard lock(mutex_);
  mark_ = &stopped_since_ns;
  clock_ = &clock;
  allowed_ = {};
}

void VmEvents::allow_sending(std::chrono::milliseconds time) {
  const std::lock_guard lock(mutex_);
  allowed_ = time;
}

void VmEvents::mark_stopped() {
  const std::lock_guard lock(mutex_);
  if (mark_ == nullptr) return;
  const std::int64_t now = clock_->monotonic().ns;
  const std::int64_t before = *mark_;
  *mark_ = before == 0 ? now : std::min(before, now);
}

void VmEvents::mark_resumed() {
  const std::lock_guard lock(mutex_);
  if (mark_ != nullptr) *mark_ = 0;
}

void VmEvents::end_marking() {
  const std::lock_guard lock(mutex_);
  if (mark_ != nullptr) *mark_ = 0;
  mark_ = nullptr;
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
