// What shadow-replay's subcommands do, once their options are known. Results go to stdout, as text
// or as one JSON object; progress to stderr if that is a terminal.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include <vmshadow/result.h>
#include <vmshadow/types.h>

#include "app/replay_scope.h"
#include "replay/qemu_command.h"

namespace vmshadow::app {

struct ReplayRestoreOptions {
  std::optional<Epoch> epoch;  ///< nullopt: the newest committed
  std::string incoming;        ///< "unix:PATH" or "tcp:HOST:PORT"; empty: not so
  std::string qmp;             ///< monitor of a waiting QEMU; both empty: start one
  replay::CommandChanges changes;
  std::string disks;       ///< a folder for the epoch's disks; empty: not named
  bool old_disks = false;  ///< use the images that the command line names, as they are
  std::string run_dir;     ///< where the started QEMU's socket and log go; empty: chosen
  bool dry_run = false;
};

struct ReplayDiffOptions {
  Epoch a;
  Epoch b;
  bool count_bytes = false;
  std::size_t ranges_max = 32;  ///< listed per block
};

struct ReplayExportOptions {
  std::optional<Epoch> epoch;  ///< nullopt: the newest committed
  std::string format;          ///< "raw", "elf" or "migration"
  std::string out;
  bool replace = false;
};

/// The VMs, or one VM's epochs.
[[nodiscard]] Status list_epochs(const ReplayScope& scope);
/// Opens every epoch or, if `deep`, reads and checks every byte. Errc::corrupt if anything is
/// damaged.
[[nodiscard]] Status verify_store(const ReplayScope& scope, bool deep);
[[nodiscard]] Status restore_epoch(const ReplayScope& scope, ReplayRestoreOptions options);

// epoch_commands.cc
/// One epoch in detail.
[[nodiscard]] Status show_epoch(const ReplayScope& scope, std::optional<Epoch> epoch);
[[nodiscard]] Status diff_two_epochs(const ReplayScope& scope, const ReplayDiffOptions& options);
/// SIGINT and SIGTERM end it with Errc::cancelled; nothing is left of it then.
[[nodiscard]] Status export_one_epoch(const ReplayScope& scope, const ReplayExportOptions& options);

// manage_commands.cc: through the store that runs, or else by opening it.
[[nodiscard]] Status pin_epochs(const ReplayScope& scope, const std::vector<Epoch>& epochs);
[[nodiscard]] Status unpin_epochs(const ReplayScope& scope, const std::vector<Epoch>& epochs);
[[nodiscard]] Status show_retention(const ReplayScope& scope);
[[nodiscard]] Status set_retention(const ReplayScope& scope, const std::string& policy);
/// 0: none.
[[nodiscard]] Status set_quota(const ReplayScope& scope, std::uint64_t bytes);

struct ReplayStatusOptions {
  std::map<std::string, double> prices;  ///< by kind of tier, of a GiB for a month
};
/// What the running store holds and does. Errc::unsupported if none runs.
[[nodiscard]] Status show_status(const ReplayScope& scope, const ReplayStatusOptions& options);

}  // namespace vmshadow::app
