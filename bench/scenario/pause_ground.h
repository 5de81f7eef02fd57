// Where pauses are compared: one running guest, one store, and three secondaries that take the
// guest's epochs in turn.
//
//   floor     discards all it reads, acknowledges at the same points: QEMU's own work alone
//   vmshadow  the sidecar program, shipping into the store program
//   colo      QEMU's own secondary
#pragma once

#include <chrono>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <vmshadow/result.h>

#include "qmp/session.h"
#include "support/pause_log.h"
#include "support/qemu_guest.h"
#include "support/replication_rig.h"

namespace vmshadow::bench {

enum class Contender { floor, vmshadow, colo };
inline constexpr Contender kContenders[] = {Contender::floor, Contender::vmshadow, Contender::colo};
[[nodiscard]] const char* name_of(Contender contender);

/// EpochStats' phases, as the sidecar's lines name them.
inline constexpr const char* kPausePhases[] = {"request", "stop", "cut", "ram", "device", "resume"};

/// The epochs of one attachment that count: not the first pass, nor the epoch behind it, which
/// holds what was written during that pass.
struct PauseSession {
  std::vector<double> pause_ms;  ///< STOP to RESUME on the monitor, QEMU's stamps
  std::vector<double> pages;     ///< dirty pages; none for colo, which does not say
  /// Writes of a page per epoch, by the guest's own count: one figure a session.
  std::vector<double> written;
  std::map<std::string, std::vector<double>> phases_ms;  ///< of vmshadow
  void add(const PauseSession& other);
};

class PauseGround {
 public:
  /// Boots the guest, starts the store.
  [[nodiscard]] static Result<std::unique_ptr<PauseGround>> start(const test::GuestConfig& config);

  [[nodiscard]] test::QemuGuest& guest() { return *guest_; }
  /// Attaches a secondary, takes epochs at the interval until `epochs` of them count, leaves.
  [[nodiscard]] Result<PauseSession> run(Contender contender, unsigned epochs,
                                         std::chrono::milliseconds interval);
  /// The guest's pauses so far, as another monitor reports them.
  [[nodiscard]] std::vector<test::PauseLog::Pause> pauses() const { return pauses_.pauses(); }
  /// The sidecar on this guest; waits until it is attached.
  [[nodiscard]] Result<test::SidecarProgram> start_sidecar(std::chrono::milliseconds interval,
                                                           std::vector<std::string> extra = {});

 private:
  PauseGround(test::GuestConfig config, test::StoreProgram store,
              std::unique_ptr<test::TempDir> directory, std::unique_ptr<test::QemuGuest> guest);
  [[nodiscard]] Result<PauseSession> run_session(Contender contender, unsigned epochs,
                                                 std::chrono::milliseconds interval);
  [[nodiscard]] Result<PauseSession> run_floor(unsigned epochs, std::chrono::milliseconds interval);
  [[nodiscard]] Result<PauseSession> run_vmshadow(unsigned epochs,
                                                  std::chrono::milliseconds interval);
  [[nodiscard]] Result<PauseSession> run_colo(unsigned epochs, std::chrono::milliseconds interval);

  test::GuestConfig config_;
  std::unique_ptr<test::TempDir> directory_;
  test::StoreProgram store_;
  std::unique_ptr<test::QemuGuest> guest_;
  test::PauseLog pauses_;
  std::unique_ptr<qmp::Session> observer_;
};

}  // namespace vmshadow::bench
