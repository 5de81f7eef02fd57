// What shadow-replay's subcommands do, once their options are known. Results go to stdout, as text
// or as one JSON object; progress to stderr if that is a terminal.
#pragma once

#include <optional>
#include <string>

#include <vmshadow/result.h>
#include <vmshadow/types.h>

#include "replay/qemu_command.h"

namespace vmshadow::app {

struct ReplayScope {
  std::string store;  ///< its directory
  std::string vm;     ///< empty: all of them, or the only one
  bool json = false;
};

struct ReplayRestoreOptions {
  std::optional<Epoch> epoch;  ///< nullopt: the newest committed
  std::string incoming;        ///< "unix:PATH" or "tcp:HOST:PORT"; empty: not so
  std::string qmp;             ///< monitor of a waiting QEMU; both empty: start one
  replay::CommandChanges changes;
  std::string run_dir;  ///< where the started QEMU's socket and log go; empty: chosen
  bool dry_run = false;
};

/// The VMs, or one VM's epochs.
[[nodiscard]] Status list_epochs(const ReplayScope& scope);
/// Errc::corrupt if anything is damaged.
[[nodiscard]] Status verify_store(const ReplayScope& scope);
[[nodiscard]] Status restore_epoch(const ReplayScope& scope, const ReplayRestoreOptions& options);

}  // namespace vmshadow::app
