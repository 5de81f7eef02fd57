// shadow-replay: lists, verifies and restores what a store holds. Options to commands, nothing
// else.
#include <CLI/CLI.hpp>

#include <charconv>
#include <cstdio>

#include "app/replay_commands.h"

namespace {

using namespace vmshadow;  // NOLINT(google-build-using-namespace): a main, not a header

constexpr int kExitOk = 0;
constexpr int kExitFailed = 1;
constexpr int kExitUsage = 2;

constexpr const char* kHelp =
    R"(Brings back VMs from a vmshadow store: any committed epoch, without the primary host, also while
the store is being written to.

  shadow-replay --store /var/lib/vmshadow list              which VMs, how fresh
  shadow-replay --store /var/lib/vmshadow list web1         all epochs of one
  shadow-replay --store /var/lib/vmshadow verify            read and check every byte
  shadow-replay --store /var/lib/vmshadow restore web1      run the newest epoch

Exit codes: 0 done, 1 failed, 2 usage.)";

constexpr const char* kRestoreHelp =
    R"(Without --incoming or --qmp the QEMU is started from the recorded command line, less its monitors,
and left running:

  restore web1 --dry-run                            show the command line, start nothing
  restore web1 --epoch 1200                         as it was at that epoch
  restore web1 --set /srv/web1.img=/srv/copy.img    the disk is elsewhere here

or you start it, with the same machine type, memory and devices:

  qemu-system-x86_64 ... -qmp unix:/run/b.qmp,server=on,wait=off -incoming defer
  restore web1 --qmp /run/b.qmp
  qemu-system-x86_64 ... -incoming unix:/run/in.sock
  restore web1 --incoming unix:/run/in.sock

What the guest did after the epoch's cut is lost; how much that is gets printed. Only RAM and devices
are restored: disks must be as they were at the cut. Make sure that the original no longer runs.)";

int usage_error(const std::string& message) {
  std::fprintf(stderr, "shadow-replay: %s\n", message.c_str());
  return kExitUsage;
}

/// "latest" or a number.
bool parse_epoch(const std::string& text, std::optional<Epoch>& epoch) {
  if (text == "latest") return true;
  std::uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc{} || end != text.data() + text.size()) return false;
  epoch = Epoch{number};
  return true;
}

struct RawRestoreOptions {
  std::string epoch = "latest";
  std::vector<std::string> replacements;
};

/// What the parser cannot say about restore's options; nullopt if all is well.
std::optional<std::string> complete(const RawRestoreOptions& raw, app::ReplayRestoreOptions& to) {
  if (!parse_epoch(raw.epoch, to.epoch)) {
    return "--epoch: '" + raw.epoch + "' is neither a number nor 'latest'";
  }
  for (const std::string& text : raw.replacements) {
    auto replacement = replay::parse_replacement(text);
    if (!replacement) return "--set: " + replacement.error().message;
    to.changes.replacements.push_back(*std::move(replacement));
  }
  for (const std::string& setting : to.changes.environment) {
    if (setting.find('=') == std::string::npos || setting.front() == '=') {
      return "--env: '" + setting + "' is not of the form NAME=VALUE";
    }
  }
  return std::nullopt;
}

CLI::App* add_restore(CLI::App& cli, app::ReplayScope& scope, RawRestoreOptions& raw,
                      app::ReplayRestoreOptions& options) {
  CLI::App* restore = cli.add_subcommand("restore", "Puts one epoch into a QEMU");
  restore->footer(kRestoreHelp);
  restore->add_option("vm", scope.vm, "the VM's name; not needed if the store holds only one");
  restore->add_option("--epoch", raw.epoch, "number of the epoch, or latest")
      ->capture_default_str();
  auto* incoming = restore->add_option("--incoming", options.incoming,
                                       "a QEMU waits here: unix:PATH or tcp:HOST:PORT");
  auto* qmp = restore->add_option("--qmp", options.qmp,
                                  "monitor socket of a QEMU started with -incoming defer");
  incoming->excludes(qmp);
  const auto started_only = [&](CLI::Option* option) {
    option->excludes(incoming)->excludes(qmp)->group("For a QEMU started here");
  };
  started_only(restore->add_option("--set", raw.replacements,
                                   "OLD=NEW: replace text in the arguments (\\= for a = in OLD)"));
  started_only(restore->add_option("--extra-arg", options.changes.extra_args,
                                   "one more argument for QEMU, as --extra-arg=-snapshot"));
  started_only(restore->add_option("--qemu", options.changes.qemu_binary, "another executable"));
  started_only(restore->add_option("--env", options.changes.environment,
                                   "NAME=VALUE for QEMU's environment"));
  started_only(
      restore->add_option("--cwd", options.changes.cwd, "folder that relative paths refer to"));
  started_only(restore->add_option("--run-dir", options.run_dir,
                                   "where the monitor's socket and the log go"));
  started_only(restore->add_flag("--dry-run", options.dry_run, "print the command, start nothing"));
  for (const char* repeated : {"--set", "--extra-arg", "--env"}) {
    restore->get_option(repeated)->allow_extra_args(false);  // once more for each value
  }
  return restore;
}

int finish(const Status& status) {
  if (status) return kExitOk;
  std::fprintf(stderr, "shadow-replay: %s\n", status.error().message.c_str());
  return kExitFailed;
}

}  // namespace

int main(int argc, char** argv) {
  app::ReplayScope scope;
  app::ReplayRestoreOptions options;
  RawRestoreOptions raw;

  CLI::App cli{kHelp, "shadow-replay"};
  cli.set_version_flag("--version", VMSHADOW_VERSION);
  cli.require_subcommand(1);
  cli.fallthrough();
  cli.add_option("--store", scope.store, "the store's directory")->required();
  cli.add_flag("--json", scope.json, "one JSON object on stdout");
  CLI::App* list = cli.add_subcommand("list", "The VMs of the store, or one VM's epochs");
  list->add_option("vm", scope.vm, "the VM's name");
  CLI::App* verify = cli.add_subcommand(
      "verify", "Reads every byte of the journal and checks all sums; fails if any is damaged");
  verify->add_option("vm", scope.vm, "report on this VM alone");
  const CLI::App* restore = add_restore(cli, scope, raw, options);
  try {
    cli.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return cli.exit(error);
    return usage_error(std::string(error.what()) + " (see --help)");
  }
  if (list->parsed()) return finish(app::list_epochs(scope));
  if (verify->parsed()) return finish(app::verify_store(scope));
  if (!restore->parsed()) return usage_error("a subcommand is needed (see --help)");
  if (const auto wrong = complete(raw, options)) return usage_error(*wrong);
  return finish(app::restore_epoch(scope, options));
}
