// From the command line a VM's QEMU was started with to one that can take its state. Pure.
//
// Dropped: -daemonize, -pidfile, -incoming, -S, -preconfig, -loadvm and every monitor (-qmp,
// -qmp-pretty, -monitor, -mon with the -chardev only it uses): they belong to whoever ran the
// original. Appended: a QMP socket of ours and `-incoming defer`. All else stays, in order, since
// the device state fits only the same devices.
#pragma once

#include <string>
#include <vector>

#include <vmshadow/result.h>

#include "replay/machine_record.h"

namespace vmshadow::replay {

/// Literal replacement of text inside arguments.
struct Replacement {
  std::string from;
  std::string to;
};
/// Parses "OLD=NEW" (split at the first '='; "\=" stands for an '=' in OLD).
[[nodiscard]] Result<Replacement> parse_replacement(const std::string& text);

/// What the operator wants otherwise than recorded.
struct CommandChanges {
  std::string qemu_binary;                ///< empty: the recorded one
  std::string cwd;                        ///< empty: the recorded one
  std::vector<Replacement> images;        ///< whole file names, before `replacements`
  std::vector<Replacement> replacements;  ///< applied in order, to every kept argument
  std::vector<std::string> extra_args;    ///< appended as they are
  std::vector<std::string> environment;   ///< "NAME=VALUE", added to our own
};

struct QemuCommand {
  std::vector<std::string> argv;  ///< argv[0] is the executable
  std::string cwd;                ///< empty: stay where we are
  std::vector<std::string> environment;
  /// The machine cannot run here without /dev/kvm.
  bool needs_kvm{};
};

/// Errc::invalid_argument when an image's name or a replacement matches nothing, or an argument
/// that is kept names a file descriptor that only the original's parent could pass.
[[nodiscard]] Result<QemuCommand> command_for_restore(const MachineRecord& record,
                                                      const CommandChanges& changes,
                                                      const std::string& qmp_path);

/// The command as a shell would take it, for people.
[[nodiscard]] std::string shell_text(const QemuCommand& command);

}  // namespace vmshadow::replay
