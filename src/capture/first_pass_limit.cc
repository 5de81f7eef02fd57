#include "capture/first_pass_limit.h"

#include <nlohmann/json.hpp>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>

#include "qmp/commands.h"

namespace vmshadow::capture {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kAskEvery{100};

}  // namespace

std::optional<milliseconds> FirstPassLimit::Steps::look(std::uint64_t passes, io::Deadline now) {
  if (passes <= passes_ || now < raise_at_ || limit_ >= most_) return std::nullopt;
  limit_ = std::min(2 * limit_, most_);
  passes_ = passes;
  raise_at_ = now + kRaiseEvery;
  return limit_;
}

FirstPassLimit::FirstPassLimit(qmp::Session& session, Options options)
    : session_(session),
      options_(std::move(options)),
      thread_([this](const std::stop_token& stop) { watch(stop); }) {}

void FirstPassLimit::watch(const std::stop_token& stop) {
  Steps steps(options_.most);
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      stopped_.wait_for(lock, stop, kAskEvery, [] { return false; });
    }
    if (stop.stop_requested()) return;
    const auto info = qmp::query_migrate(session_);
    // What ends the pass otherwise shows on the stream.
    if (!info || stop.stop_requested()) return;
    if (options_.on_look && (!options_.on_look() || stop.stop_requested())) return;
    const auto limit = steps.look(info->ram_passes, io::Deadline::clock::now());
    if (!limit) continue;
    spdlog::info("the VM writes faster than it can be read (pass {}): allowing a pause of {} ms",
                 info->ram_passes, limit->count());
    if (options_.on_raise) options_.on_raise(*limit);
    if (auto set = qmp::migrate_set_parameters(session_, {{"downtime-limit", limit->count()}});
        !set) {
      spdlog::warn("cannot raise QEMU's downtime-limit: {}", set.error().message);
      return;
    }
  }
}

}  // namespace vmshadow::capture
