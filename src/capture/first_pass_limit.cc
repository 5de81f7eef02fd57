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
constexpr std::uint64_t kDoublingsMax = 20;  // beyond kMost, and no overflow

}  // namespace

milliseconds FirstPassLimit::after(std::uint64_t passes, milliseconds most) {
  if (passes <= kPassesFree) return std::min(kInitial, most);
  const std::uint64_t doublings = std::min(passes - kPassesFree, kDoublingsMax);
  return std::min(kInitial * (std::int64_t{1} << doublings), most);
}

FirstPassLimit::FirstPassLimit(qmp::Session& session, Options options)
    : session_(session),
      options_(std::move(options)),
      thread_([this](const std::stop_token& stop) { watch(stop); }) {}

void FirstPassLimit::watch(const std::stop_token& stop) {
  milliseconds limit = kInitial;
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      stopped_.wait_for(lock, stop, kAskEvery, [] { return false; });
    }
    if (stop.stop_requested()) return;
    const auto info = qmp::query_migrate(session_);
    // What ends the pass otherwise shows on the stream.
    if (!info || stop.stop_requested()) return;
    if (options_.on_run_state) {
      const auto run_state = qmp::query_status(session_);
      if (!run_state || stop.stop_requested()) return;
      options_.on_run_state(*run_state);
    }
    const milliseconds wanted = after(info->ram_passes, options_.most);
    if (wanted <= limit) continue;
    limit = wanted;
    spdlog::info("the VM writes faster than it can be read (pass {}): allowing a pause of {} ms",
                 info->ram_passes, limit.count());
    if (auto set = qmp::migrate_set_parameters(session_, {{"downtime-limit", limit.count()}});
        !set) {
      spdlog::warn("cannot raise QEMU's downtime-limit: {}", set.error().message);
      return;
    }
  }
}

}  // namespace vmshadow::capture
