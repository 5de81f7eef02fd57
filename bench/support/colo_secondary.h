// QEMU's own COLO secondary, as a baseline: a second QEMU that loads every checkpoint and runs the
// guest as well (docs/COLO-FT.txt of QEMU, without its disk replication and network filters).
//
//   primary ─ migrate unix:… ─► secondary (-incoming defer, the same machine)
//           ◄─ READY ─           both run
//           ─ checkpoint ─►      both stop; RAM into its cache, then into its RAM; devices; LOADED
#pragma once

#include <chrono>
#include <memory>
#include <optional>

#include <vmshadow/result.h>

#include "capture/vm_events.h"
#include "qmp/session.h"
#include "support/qemu_guest.h"

namespace vmshadow::bench {

class ColoSecondary {
 public:
  /// `like`: what the primary was started with. `primary`'s events go to `events`; both outlive it.
  ColoSecondary(test::GuestConfig like, qmp::Session& primary, const capture::VmEvents& events);
  ~ColoSecondary();
  ColoSecondary(const ColoSecondary&) = delete;
  ColoSecondary& operator=(const ColoSecondary&) = delete;

  /// Starts the second QEMU and waits until both are in COLO and the primary's guest runs.
  [[nodiscard]] Status attach();
  /// One checkpoint: how long the primary's guest stood still. (QEMU does not say how many pages.)
  [[nodiscard]] Result<std::chrono::microseconds> take_epoch();
  /// Takes the primary out of COLO, its guest running, and ends the second QEMU.
  [[nodiscard]] Status detach();

 private:
  [[nodiscard]] Status wait_for_colo(qmp::Session& session, const char* whose);

  test::GuestConfig like_;
  qmp::Session& primary_;
  const capture::VmEvents& events_;
  std::unique_ptr<test::QemuGuest> qemu_;
  bool attached_ = false;
};

}  // namespace vmshadow::bench
