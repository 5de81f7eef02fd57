// Mirrors one disk of a running VM to an NBD export of ours: first all of it, then what the guest
// writes.
//
//   start() ─► copying ─► ready ─► (stop() or destroyed)
//                 └─────────┴──► ended: QEMU gave it up (an error of the target's or of the disk's,
//                                or somebody cancelled it); the guest's writes go on without us
//
// The guest waits for none of it (copy-mode=background). With copy-mode=write-blocking every write
// would be here before the guest goes on; but a mirror that ends while such a write is on its way,
// by an error or by force, makes QEMU write to memory that it has freed (seen with 7.2:
// block/mirror frees in_flight_bitmap before it drains the disk): whoever kills this process would
// kill the guest.
//
// What is in QEMU has names that begin with "vmshadow-": a block node for the export, and the job.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <vmshadow/result.h>

#include "base/unique_fd.h"
#include "qmp/commands.h"
#include "qmp/session.h"

namespace vmshadow::capture {

class DiskMirror {
 public:
  /// `connection` is QEMU's end of a socket whose other end serves NBD by now. `session` outlives
  /// the mirror. Errors: QEMU's, with the disk's name; Errc::unsupported if QEMU does not tell the
  /// disk's node or length. After an error nothing is left in QEMU.
  [[nodiscard]] static Result<std::unique_ptr<DiskMirror>> start(qmp::Session& session,
                                                                 const qmp::WritableDisk& disk,
                                                                 UniqueFd connection,
                                                                 const std::string& export_name,
                                                                 const qmp::MirrorOptions& options);
  /// stop(), and tells the log what went wrong.
  ~DiskMirror();
  DiskMirror(const DiskMirror&) = delete;
  DiskMirror& operator=(const DiskMirror&) = delete;

  [[nodiscard]] const qmp::WritableDisk& disk() const { return disk_; }

  enum class Phase { ended, copying, ready };
  struct Progress {
    Phase phase{};
    std::uint64_t bytes_done{};
    std::uint64_t bytes_total{};  ///< grows with what the guest writes
    bool at_work{};               ///< just now; a mirror that waits for its copies is
  };
  [[nodiscard]] Result<Progress> progress();
  /// The same, of a reply that has it.
  [[nodiscard]] Progress progress_in(const std::vector<qmp::BlockJob>& jobs) const;
  /// Of the first copy, in bytes a second; 0: as fast as it goes. Set to 0, a mirror that rests
  /// looks for work at once.
  [[nodiscard]] Status limit_speed(std::uint64_t bytes_per_second);
  /// Lets what is written gather in QEMU.
  [[nodiscard]] Status halt();
  [[nodiscard]] Status go_on();
  /// Ends the job and takes what is ours out of QEMU; waits for that, at most about `within`.
  [[nodiscard]] Status stop(std::chrono::milliseconds within = std::chrono::seconds(10));

 private:
  DiskMirror(qmp::Session& session, qmp::WritableDisk disk);

  qmp::Session& session_;
  const qmp::WritableDisk disk_;
  const std::string job_;
  const std::string node_;
  bool halted_ = false;
  bool stopped_ = false;
};

/// Ends mirrors of ours and takes their nodes out of QEMU, whoever began them. True if there were
/// any.
[[nodiscard]] Result<bool> end_mirrors(qmp::Session& session,
                                       std::chrono::milliseconds within = std::chrono::seconds(10));

}  // namespace vmshadow::capture
