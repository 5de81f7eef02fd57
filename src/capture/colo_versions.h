// What differs between QEMU's versions in the COLO that is spoken here: one table. A row holds from
// its version up to the next row's. Everything else (ColoSource, MigrationStream, the probe) asks
// it and knows no version numbers.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <span>

#include "qmp/session.h"

namespace vmshadow::capture {

/// The migration stream's commands that a capture may meet (MIG_CMD_… in migration/savevm.c).
enum class StreamCommand : std::uint16_t {
  open_return_path = 1,
  ping = 2,
  enable_colo = 8,
  switchover_start = 11,
};

class StreamCommands {
 public:
  constexpr StreamCommands(std::initializer_list<StreamCommand> commands) {
    for (const StreamCommand command : commands) {
      bits_ |= std::uint32_t{1} << static_cast<unsigned>(command);
    }
  }
  [[nodiscard]] constexpr bool contains(std::uint16_t number) const {
    return number < 32 && ((bits_ >> number) & 1) != 0;
  }

 private:
  std::uint32_t bits_ = 0;
};

struct ColoVersion {
  int major{}, minor{}, micro{};  ///< the first version that this row is about
  /// May come in the first pass, before RAM's end.
  StreamCommands initial_commands;
  /// May come in a checkpoint, between VMSTATE_SEND and the dirty RAM.
  StreamCommands checkpoint_commands;
  /// x-colo is only taken together with the capability return-path, and QEMU enters COLO once that
  /// path is shut.
  bool needs_return_path{};
  /// The monitor waits while QEMU sends a checkpoint's RAM: whoever shall free a VM from a reader
  /// that hangs needs a connection that was made before, and out-of-band commands.
  bool monitor_waits_for_sends{};
  /// Why it must not be captured and what to use instead; null if it can be.
  const char* refusal = nullptr;
};

/// All rows, oldest first.
[[nodiscard]] std::span<const ColoVersion> colo_versions();
/// The row of a version. One older than all rows gets the oldest, whose refusal it shares.
[[nodiscard]] const ColoVersion& colo_version(const qmp::QemuVersion& version);

}  // namespace vmshadow::capture
