#include "support/colo_secondary.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <thread>
#include <utility>

#include "capture/release_vm.h"
#include "io/socket.h"
#include "qmp/commands.h"

namespace vmshadow::bench {
namespace {

constexpr std::chrono::seconds kColoWithin{30};
constexpr std::chrono::milliseconds kColoPoll{2};
/// A request that met the end of the checkpoint before is lost: it is made again.
constexpr std::chrono::milliseconds kColoRequestRetry{500};
const qmp::Json kColoDelayMax{{"x-checkpoint-delay", 4294967295U}};

}  // namespace

ColoSecondary::ColoSecondary(test::GuestConfig like, qmp::Session& primary,
                             const capture::VmEvents& events)
    : like_(std::move(like)), primary_(primary), events_(events) {
  like_.incoming = true;
}

ColoSecondary::~ColoSecondary() { static_cast<void>(detach()); }

Status ColoSecondary::wait_for_colo(qmp::Session& session, const char* whose) {
  const auto deadline = io::deadline_after(kColoWithin);
  for (;;) {
    VMSHADOW_ASSIGN(const qmp::MigrationInfo info, qmp::query_migrate(session));
    if (info.status == "colo") return {};
    if (info.status == "failed" || info.status == "completed") {
      return fail(Errc::protocol, fmt::format("the {} QEMU did not enter COLO (status {}): {}",
                                              whose, info.status, info.error));
    }
    if (io::Deadline::clock::now() >= deadline) {
      return fail(Errc::timed_out,
                  fmt::format("the {} QEMU is not in COLO (status {})", whose, info.status));
    }
    std::this_thread::sleep_for(kColoPoll);
  }
}

Status ColoSecondary::attach() {
  VMSHADOW_ASSIGN(qemu_, test::QemuGuest::start(like_));
  VMSHADOW_ASSIGN(const auto secondary, qmp::Session::connect(qemu_->qmp_path()));
  const std::string uri = "unix:" + qemu_->directory().file("colo");
  VMSHADOW_TRY(qmp::migrate_set_capabilities(*secondary, {{"x-colo", true}}));
  VMSHADOW_TRY(qmp::migrate_incoming(*secondary, uri));

  VMSHADOW_TRY(qmp::migrate_set_capabilities(primary_, {{"x-colo", true}, {"events", true}}));
  VMSHADOW_TRY(qmp::migrate_set_parameters(
      primary_, {{"max-bandwidth", std::uint64_t{1} << 50}, {"x-checkpoint-delay", 4294967295U}}));
  attached_ = true;
  VMSHADOW_TRY(qmp::migrate(primary_, uri));
  VMSHADOW_TRY(wait_for_colo(primary_, "primary"));
  VMSHADOW_TRY(wait_for_colo(*secondary, "secondary"));
  // The primary's guest stands still until the secondary has loaded the first pass.
  const auto deadline = io::deadline_after(kColoWithin);
  for (;;) {
    VMSHADOW_ASSIGN(const qmp::RunState state, qmp::query_status(primary_));
    if (state.running) return {};
    if (io::Deadline::clock::now() >= deadline) {
      return fail(Errc::timed_out,
                  "the secondary QEMU is never ready; it said: " + qemu_->messages());
    }
    std::this_thread::sleep_for(kColoPoll);
  }
}

Result<std::chrono::microseconds> ColoSecondary::take_epoch() {
  const std::uint64_t stops_before = events_.stops();
  const auto deadline = io::deadline_after(kColoWithin);
  while (io::Deadline::clock::now() < deadline) {
    // Asked while the checkpoint runs, QEMU would add another one behind it.
    if (events_.stops() == stops_before) {
      VMSHADOW_TRY(qmp::migrate_set_parameters(primary_, kColoDelayMax));
    }
    if (const auto pause = events_.wait_for_pause(stops_before, kColoRequestRetry)) return *pause;
  }
  return fail(Errc::timed_out, fmt::format("a checkpoint to QEMU's own secondary did not end "
                                           "within {} s; it said: {}",
                                           kColoWithin.count(), qemu_->messages()));
}

Status ColoSecondary::detach() {
  if (!std::exchange(attached_, false)) return {};
  VMSHADOW_TRY(capture::release_vm(primary_));
  qemu_->kill();
  return qmp::migrate_set_capabilities(primary_, {{"x-colo", false}});
}

}  // namespace vmshadow::bench
