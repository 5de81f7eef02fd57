// A sidecar as a service manager runs it: started again a moment after it ended, whatever ended it
// (systemd's Restart=always, with its usual RestartSec).
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include <vmshadow/clock.h>

#include "support/replication_rig.h"

namespace vmshadow::test {

/// Of one thread: the kernel ends the sidecar with it.
class SidecarService {
 public:
  static constexpr std::chrono::milliseconds kRestartAfter{100};

  /// How one of the sidecars ended.
  struct End {
    ExitStatus status;
    bool attached{};  ///< it had begun to protect the VM
    std::string messages;
  };

  explicit SidecarService(SidecarConfig config) : config_(std::move(config)) {}

  /// Notes an end, starts what is due. To be called every few milliseconds.
  void tick();
  /// SIGTERM, and no start after it.
  [[nodiscard]] Result<ExitStatus> stop();

  /// The sidecar that runs; nullptr between two.
  [[nodiscard]] SidecarProgram* program() { return program_ ? &*program_ : nullptr; }
  /// Just before the newest start.
  [[nodiscard]] MonotonicTime started_at() const { return started_at_; }
  /// Of those that have ended, oldest first.
  [[nodiscard]] const std::vector<End>& ends() const { return ends_; }

  // ---- of all sidecars so far; these read what the running one has printed
  [[nodiscard]] std::set<std::uint64_t> acknowledged() const;
  [[nodiscard]] std::size_t epochs() const;
  [[nodiscard]] std::size_t attachments() const;

 private:
  void retire(const ExitStatus& status);

  SidecarConfig config_;
  std::optional<SidecarProgram> program_;
  io::Deadline start_at_{};
  MonotonicTime started_at_{};
  std::vector<End> ends_;
  std::set<std::uint64_t> acknowledged_;  // of those that have ended
  std::size_t attachments_ = 0;           // likewise
};

}  // namespace vmshadow::test
