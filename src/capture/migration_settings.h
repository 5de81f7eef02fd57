// The migration settings of a QEMU that a capture changes, kept to be put back: by the capture
// itself, or by the guard after the capture's death.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>

#include <vmshadow/result.h>

#include "capture/capture_kind.h"
#include "qmp/session.h"

namespace vmshadow::capture {

/// The largest delay QEMU takes (uint32 milliseconds, 49 days): the cadence is ours.
constexpr std::uint64_t kCheckpointDelayMs = 4294967295;

class MigrationSettings {
 public:
  /// Reads what is set now. Errc::unsupported if this QEMU does not know x-colo, for a capture that
  /// needs it. What a capture that died has left is not taken for the operator's: QEMU's defaults
  /// stand in for it.
  [[nodiscard]] static Result<MigrationSettings> read(qmp::Session& session, CaptureKind kind);
  /// Switches to what a capture needs. COLO: x-colo alone, as fast as it goes, checkpoints on
  /// request. A full pass: a return path, over which we have the last word, and events.
  [[nodiscard]] Status apply_for_capture(qmp::Session& session) const;
  [[nodiscard]] Status apply_capabilities(qmp::Session& session) const;
  [[nodiscard]] Status apply_parameters(qmp::Session& session) const;
  /// Puts back what was read. Tries both capabilities and parameters, whichever fails.
  [[nodiscard]] Status restore(qmp::Session& session) const;
  /// Errc::invalid_argument while a migration goes on.
  [[nodiscard]] Status restore_capabilities(qmp::Session& session) const;
  [[nodiscard]] Status restore_parameters(qmp::Session& session) const;

  /// What was read had been set by a capture that never put it back.
  [[nodiscard]] bool left_by_capture() const { return left_by_capture_; }

  /// It was a full pass, of which there is nothing left in force between two passes.
  [[nodiscard]] bool left_by_full_pass() const { return left_by_full_pass_; }

  /// One line of JSON, at most kTextBytesMax bytes; and back.
  static constexpr std::size_t kTextBytesMax = 4096;
  [[nodiscard]] std::string text() const;
  [[nodiscard]] static Result<MigrationSettings> parse(const std::string& text);

 private:
  std::map<std::string, bool> capabilities_;         // only those we change
  std::set<std::string> on_;                         // those of them that a capture needs on
  std::map<std::string, std::uint64_t> parameters_;  // likewise
  CaptureKind kind_ = CaptureKind::colo;
  bool left_by_capture_ = false;
  bool left_by_full_pass_ = false;
};

}  // namespace vmshadow::capture
