// Mirrors one disk of a running VM to an NBD export of ours: first all of it, then each write of
// the guest's before the guest sees it complete.
//
//   start() ─► copying ─► ready ─► (stop() or destroyed)
//                 └─────────┴──► ended: QEMU gave it up (an error of the target's or of the disk's,
//                                or somebody cancelled it); the guest's writes go on without us
//
// What is in QEMU has names that begin with "vmshadow-": a block node for the export, and the job.
//
// A target that stops answering stops the guest: whoever serves the export acknowledges from
// memory, and sees to it that its connection can be shut down from outside this process.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

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
                                                                 const std::string& export_name);
  /// stop(), and tells the log what went wrong.
  ~DiskMirror();
  DiskMirror(const DiskMirror&) = delete;
  DiskMirror& operator=(const DiskMirror&) = delete;

  [[nodiscard]] const qmp::WritableDisk& disk() const { return disk_; }

  enum class Phase { copying, ready, ended };
  struct Progress {
    Phase phase{};
    std::uint64_t bytes_done{};
    std::uint64_t bytes_total{};  ///< grows with what the guest writes meanwhile
  };
  [[nodiscard]] Result<Progress> progress();
  /// Of the first copy, in bytes a second; 0: as fast as it goes.
  [[nodiscard]] Status limit_speed(std::uint64_t bytes_per_second);
  /// Ends the job and takes what is ours out of QEMU; waits for that, at most about `within`.
  [[nodiscard]] Status stop(std::chrono::milliseconds within = std::chrono::seconds(10));

 private:
  DiskMirror(qmp::Session& session, qmp::WritableDisk disk);

  qmp::Session& session_;
  const qmp::WritableDisk disk_;
  const std::string job_;
  const std::string node_;
  bool stopped_ = false;
};

/// Ends mirrors of ours and takes their nodes out of QEMU, whoever began them. True if there were
/// any.
[[nodiscard]] Result<bool> end_mirrors(qmp::Session& session,
                                       std::chrono::milliseconds within = std::chrono::seconds(10));

}  // namespace vmshadow::capture
