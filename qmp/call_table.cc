#include "qmp/call_table.h"

#include <utility>

#include "base/assert.h"

namespace vmshadow::qmp {

bool CallTable::has_slot(CallKind kind) const {
  if (kind.passes_fd && passing_fd_ > 0) return false;
  return kind.lane == Lane::in_band ? in_band_ < kInBandMax : out_of_band_ < kOutOfBandMax;
}

void CallTable::count(CallKind kind, int change) {
  const auto add = [&](std::size_t& counter) {
    counter = static_cast<std::size_t>(static_cast<std::ptrdiff_t>(counter) + change);
  };
  add(kind.lane == Lane::in_band ? in_band_ : out_of_band_);
  if (kind.passes_fd) add(passing_fd_);
}

Result<CallId> CallTable::begin(CallKind kind, const std::string& what, io::Deadline deadline) {
  std::unique_lock lock(mutex_);
  changed_.wait_until(lock, deadline, [&] { return ended_ || has_slot(kind); });
  if (ended_) return fail(*ended_);
  if (!has_slot(kind)) {
    return fail(Errc::timed_out, what + ": not sent: QEMU has not answered the commands before it");
  }
  count(kind, 1);
  calls_.emplace(++last_id_, Call{kind, false, std::nullopt});
  return last_id_;
}

Result<nlohmann::json> CallTable::wait(CallId id, const std::string& what, io::Deadline deadline) {
  std::unique_lock lock(mutex_);
  const auto found = calls_.find(id);
  VMSHADOW_ASSERT(found != calls_.end() && !found->second.abandoned);
  Call& call = found->second;
  changed_.wait_until(lock, deadline, [&] { return ended_ || call.reply; });
  // A reply that came before the end counts: `quit` is answered, then the connection closes.
  if (call.reply) {
    nlohmann::json reply = std::move(*call.reply);
    calls_.erase(found);
    return reply;
  }
  if (ended_) return fail(*ended_);
  call.abandoned = true;
  return fail(Errc::timed_out, what + ": no reply in time: QEMU's main loop is busy or stuck");
}

void CallTable::withdraw(CallId id) {
  {
    const std::lock_guard lock(mutex_);
    const auto found = calls_.find(id);
    VMSHADOW_ASSERT(found != calls_.end());
    // An answer to what was never sent has freed the slot already.
    if (!found->second.reply) count(found->second.kind, -1);
    calls_.erase(found);
  }
  changed_.notify_all();
}

bool CallTable::complete(CallId id, nlohmann::json reply) {
  {
    const std::lock_guard lock(mutex_);
    const auto found = calls_.find(id);
    if (found == calls_.end() || found->second.reply) return false;
    count(found->second.kind, -1);
    if (found->second.abandoned)
      calls_.erase(found);
    else
      found->second.reply = std::move(reply);
  }
  changed_.notify_all();
  return true;
}

void CallTable::end(Error reason) {
  {
    const std::lock_guard lock(mutex_);
    if (ended_) return;
    ended_ = std::move(reason);
  }
  changed_.notify_all();
}

std::optional<Error> CallTable::ended() const {
  const std::lock_guard lock(mutex_);
  return ended_;
}

}  // namespace vmshadow::qmp
