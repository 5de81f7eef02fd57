// shadow-replay: lists, verifies and restores what a store holds. Options to commands, nothing
// else.
#include <CLI/CLI.hpp>

#include <charconv>
#include <cmath>
#include <cstdio>
#include <functional>
#include <utility>
#include <vector>

#include "app/byte_size.h"
#include "app/key_options.h"
#include "app/open_files.h"
#include "app/replay_commands.h"
#include "base/standard_streams.h"

namespace {

using namespace vmshadow;  // NOLINT(google-build-using-namespace): a main, not a header

constexpr int kExitOk = 0;
constexpr int kExitFailed = 1;
constexpr int kExitUsage = 2;

constexpr const char* kHelp =
    R"(Looks into a vmshadow store and brings VMs back from it: any committed epoch, without the primary
host, also while the store is being written to.

An epoch is one consistent cut of a VM, its RAM and devices, numbered from 0. Find the one you want
(list, show), see what changed (diff), then run it (restore) or hand it to other tools (export):

  shadow-replay --store /var/lib/vmshadow list              which VMs, how fresh
  shadow-replay --store /var/lib/vmshadow list web1         all epochs of one
  shadow-replay --store /var/lib/vmshadow show web1         the newest epoch in detail
  shadow-replay --store /var/lib/vmshadow diff web1 7 12    what changed between two
  shadow-replay --store /var/lib/vmshadow verify --deep     read and check every byte
  shadow-replay --store /var/lib/vmshadow restore web1      run the newest epoch
  shadow-replay --store /var/lib/vmshadow export web1 --epoch 12 --format elf --out web1.core
  shadow-replay --store /var/lib/vmshadow pin web1 12       keep it, whatever the retention policy

Encrypted epochs (list says which) need their VM's key: --keys DIR or --key-command CMD, as vmshadow-store
has them. list, pin, unpin, retention, quota and status do without. Whoever loses the key has lost the
epochs, for ever.

All but pin, unpin, retention and quota only read. Each subcommand explains itself: list --help. With --json
each prints one JSON object on stdout; messages and progress go to stderr.

Exit codes: 0 done; 1 failed, or verify found damage: one sentence on stderr says what; 2 usage.)";

constexpr const char* kListHelp =
    R"(Without a VM: each VM with its generation (raised whenever a sidecar attaches), its oldest and
newest epoch, and the age of the newest cut: what would be lost if the primary died now.
With a VM: each epoch. "full" needs no other epoch, "delta" needs those back to the last full one;
"stored" is what it takes on disk after compression. Where the store has tiers or pins, columns say
which tier an epoch lies on and whether it is pinned.

Exit codes: 0 done; 1 failed; 2 usage.)";

constexpr const char* kShowHelp =
    R"(  show web1                   the newest epoch
  show web1 --epoch 12        another

Prints when the VM stood still for it (the primary's clock) and when it was durable (the store's), its
pages and sizes, and the machine it needs: QEMU's version, machine type, accelerator, RAM blocks, and
the command line that QEMU was started with.

Exit codes: 0 done; 1 failed; 2 usage.)";

constexpr const char* kDiffHelp =
    R"(  diff web1 7 12              pages that differ, as ranges, per RAM block
  diff web1 7 12 --bytes      and how many bytes inside them
  diff web1 7 12 --ranges 0   every range, not only the first 32 of a block

Both epochs are read once and compared page for page, whatever lies between them: a page that changed
and changed back is the same. Memory: 16 bytes for each page of the largest RAM block. --bytes reads
the differing pages again, one by one. Says also whether the device state and the machine description
differ.

Exit codes: 0 compared, whether or not anything differs (--json: "same"); 1 failed; 2 usage.)";

constexpr const char* kExportHelp =
    R"(  export web1 --epoch 12 --format raw --out web1-12/
      A folder: NAME.ram for each RAM block (pc.ram.ram; zero pages are holes, so it takes no more
      room than the guest used), NAME.img for each protected disk (raw, sparse too), machine.json,
      device_state.bin. For your own tools.

  export web1 --epoch 12 --format elf --out web1-12.core
      An ELF64 core whose addresses are the guest's physical ones, for i440fx and q35 PCs:
          gdb -core web1-12.core -ex 'x/8gx 0x100000'
      RAM lies where QEMU puts it: from 0 up to the PCI hole, the rest from 4 GiB on, the firmware
      below 4 GiB. RAM blocks without a fixed address (video memory) are left out, and named. There
      are no CPU registers in it: QEMU's CPU state has another form in each version, and what an
      epoch holds does not describe it. gdb says so ("Couldn't find general-purpose registers") and
      reads memory all the same. crash, which wants a kernel with debug information beside it, has not
      been tried yet.

  export web1 --epoch 12 --format migration --out web1-12.qemu
      A QEMU migration stream. Start a QEMU with the same machine, memory and devices (show prints
      the command line, restore --dry-run one without monitors) and
          -incoming 'exec:cat web1-12.qemu'      or, from QEMU 8.2 on, -incoming file:web1-12.qemu

Everything is written under a temporary name beside --out, synced, and then renamed: --out is there
whole or not at all. An existing file is not replaced without --force, nor ever a folder that is not an
earlier export. Disk full, Ctrl-C: nothing is left. The files are the guest's memory: mode 0600.

Exit codes: 0 done; 1 failed; 2 usage.)";

constexpr const char* kVerifyHelp =
    R"(  verify                      seconds: the store's structure and index, and that each epoch opens
  verify --deep               reads every byte: all checksums, every page decoded
  verify web1 --deep          reports on one VM alone

Without --deep encrypted epochs whose key is not given are not opened, which is said. With it their pages
count as unread, and that is a failure; what the disk holds of them is checked all the same.

Damage is reported with file, offset and epoch, and costs only the epochs that need what is damaged:
restore says which is the newest that can be. It can run beside a store that is being written to.

Exit codes: 0 no damage found; 1 damage, the store cannot be read, or a key is missing; 2 usage.)";

constexpr const char* kPinHelp =
    R"(  pin web1 1200               keep epoch 1200 until it is unpinned
  pin web1 1200 1300 1400     several
  unpin web1 1200             from now on the retention policy decides

A pinned epoch outlives its VM's retention policy; list and show say which are pinned. Durable when the
command returns. If a vmshadow-store has the directory open, it is asked through its control.sock (as
the user it runs as); else the store is opened here for the moment.

Exit codes: 0 done; 1 failed (the message says which epochs were done before); 2 usage.)";

constexpr const char* kQuotaHelp =
    R"(  quota web1 200G             its kept epochs may take 200 GiB together
  quota web1 none             any amount

A VM beyond its quota stays protected: its oldest epochs are dropped, be they within the retention
window, until the rest fits. Pinned epochs and the newest stay. Reaches the store as pin does; status
shows what each VM takes.

Exit codes: 0 done; 1 failed; 2 usage.)";

constexpr const char* kStatusHelp =
    R"(  status                      what a running vmshadow-store holds, by tier and by VM
  status --price ssd=0.08 --price hdd=0.015    with what the tiers cost a month, per GiB

Stored is what the files take, needed what of it a kept epoch still refers to; the rest is given back
as archives are compacted.

Exit codes: 0 shown; 1 no store runs, or it does not answer; 2 usage.)";

constexpr const char* kRetentionHelp =
    R"(  retention web1              show the policy and the pins
  retention web1 set window=10m,minutely=1h,hourly=1d,daily=30d
  retention web1 set default  as the store has it for VMs without a policy of their own

The policy says how far back from the newest epoch each density reaches: all epochs within the window,
then one a minute, an hour, a day; what is older goes, unless pinned. Each part is a number with s, m, h
or d; 0 leaves a density out; parts not given keep their defaults. Epochs that a shorter policy gives
up do not come back. Reaches the store as pin does.

Exit codes: 0 done; 1 failed; 2 usage.)";

constexpr const char* kRestoreHelp =
    R"(Without --incoming or --qmp the QEMU is started from the recorded command line, less its monitors,
and left running:

  restore web1 --dry-run                            show the command line, start nothing
  restore web1 --epoch 1200                         as it was at that epoch
  restore web1 --disks /srv/web1-restored           its disks too, as files of that folder
  restore web1 --set /srv/a.iso=/srv/b.iso          something is elsewhere here

or you start it, with the same machine type, memory and devices:

  qemu-system-x86_64 ... -qmp unix:/run/b.qmp,server=on,wait=off -incoming defer
  restore web1 --qmp /run/b.qmp
  qemu-system-x86_64 ... -incoming unix:/run/in.sock
  restore web1 --incoming unix:/run/in.sock

What the guest did after the epoch's cut is lost; how much that is gets printed. An epoch that holds
disks needs --disks, or --old-disks if the images are as they were at the cut; into a QEMU of yours
it brings RAM and devices alone, and shadow-replay export has the images. Make sure that the original
no longer runs.

Exit codes: 0 it runs (or is paused, if it was); 1 failed, and a QEMU started here was ended; 2 usage.)";

int usage_error(const std::string& message) {
  std::fprintf(stderr, "shadow-replay: %s\n", message.c_str());
  return kExitUsage;
}

bool parse_number(const std::string& text, std::uint64_t& number) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  return error == std::errc{} && end == text.data() + text.size();
}

/// "latest" or a number.
bool parse_epoch(const std::string& text, std::optional<Epoch>& epoch) {
  if (text == "latest") return true;
  std::uint64_t number = 0;
  if (!parse_number(text, number)) return false;
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
  auto* disks = restore->add_option("--disks", options.disks,
                                    "write the epoch's disks into this folder and use them");
  started_only(disks);
  started_only(restore
                   ->add_flag("--old-disks", options.old_disks,
                              "use the images that the command line names, as they are")
                   ->excludes(disks));
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

/// Each subcommand: its options, and what runs it once they are parsed.
class Commands {
 public:
  Commands(CLI::App& cli, app::ReplayScope& scope) : cli_(cli), scope_(scope) {
    add_list();
    add_show();
    add_diff();
    add_verify();
    add_restore_command();
    add_export();
    add_pins();
    add_retention();
    add_quota();
    add_status();
  }

  [[nodiscard]] int run() const {
    for (const auto& [command, action] : actions_) {
      if (command->parsed()) return action();
    }
    return usage_error("a subcommand is needed (see --help)");
  }

 private:
  CLI::App* add(const char* name, const char* description, const char* help,
                std::function<int()> action) {
    CLI::App* command = cli_.add_subcommand(name, description);
    command->footer(help);
    actions_.emplace_back(command, std::move(action));
    return command;
  }

  /// `command` with the epoch that --epoch says, or a usage error.
  static int with_epoch(const std::string& text,
                        const std::function<int(std::optional<Epoch>)>& command) {
    std::optional<Epoch> epoch;
    if (parse_epoch(text, epoch)) return command(epoch);
    return usage_error("--epoch: '" + text + "' is neither a number nor 'latest'");
  }

  void add_list() {
    CLI::App* list = add("list", "The VMs of the store, or one VM's epochs", kListHelp,
                         [this] { return finish(app::list_epochs(scope_)); });
    list->add_option("vm", scope_.vm, "the VM's name");
  }

  void add_show() {
    CLI::App* show =
        add("show", "One epoch in detail, and the machine it needs", kShowHelp, [this] {
          return with_epoch(epoch_, [this](std::optional<Epoch> epoch) {
            return finish(app::show_epoch(scope_, epoch));
          });
        });
    add_vm_and_epoch(show);
  }

  void add_diff() {
    CLI::App* diff = add("diff", "What differs between two epochs of a VM", kDiffHelp, [this] {
      for (const auto& [text, epoch] :
           {std::pair{&diff_a_, &diff_.a}, std::pair{&diff_b_, &diff_.b}}) {
        if (!parse_number(*text, epoch->value)) {
          return usage_error("'" + *text + "' is not the number of an epoch");
        }
      }
      return finish(app::diff_two_epochs(scope_, diff_));
    });
    diff->add_option("vm", scope_.vm, "the VM's name")->required();
    diff->add_option("a", diff_a_, "number of the one epoch")->required();
    diff->add_option("b", diff_b_, "number of the other")->required();
    diff->add_flag("--bytes", diff_.count_bytes, "count the bytes that differ inside the pages");
    diff->add_option("--ranges", diff_.ranges_max, "ranges listed per RAM block; 0: all")
        ->capture_default_str();
  }

  void add_verify() {
    CLI::App* verify = add("verify", "Checks the store; with --deep, every byte of it", kVerifyHelp,
                           [this] { return finish(app::verify_store(scope_, deep_)); });
    verify->add_option("vm", scope_.vm, "report on this VM alone");
    verify->add_flag("--deep", deep_, "read every byte and check all sums");
  }

  void add_restore_command() {
    CLI::App* restore = add_restore(cli_, scope_, raw_, restore_);
    actions_.emplace_back(restore, [this] {
      if (const auto wrong = complete(raw_, restore_)) return usage_error(*wrong);
      return finish(app::restore_epoch(scope_, restore_));
    });
  }

  void add_export() {
    CLI::App* command =
        add("export", "Writes one epoch for other programs: raw RAM, ELF core, QEMU migration file",
            kExportHelp, [this] {
              return with_epoch(epoch_, [this](std::optional<Epoch> epoch) {
                export_.epoch = epoch;
                return finish(app::export_one_epoch(scope_, export_));
              });
            });
    add_vm_and_epoch(command);
    command->add_option("--format", export_.format, "raw, elf or migration")
        ->required()
        ->check(CLI::IsMember({"raw", "elf", "migration"}));
    command->add_option("--out", export_.out, "the file, or for raw the folder, to make")
        ->required();
    command->add_flag("--force", export_.replace, "replace an existing file or earlier export");
  }

  void add_pins() {
    const auto add_one = [this](const char* name, const char* description, auto command) {
      CLI::App* pin = add(name, description, kPinHelp, [this, command] {
        std::vector<Epoch> epochs;
        for (const std::string& text : pins_) {
          if (!parse_number(text, epochs.emplace_back().value)) {
            return usage_error("'" + text + "' is not the number of an epoch");
          }
        }
        return finish(command(scope_, epochs));
      });
      pin->add_option("vm", scope_.vm, "the VM's name")->required();
      pin->add_option("epochs", pins_, "numbers of the epochs")->required();
    };
    add_one("pin", "Keeps epochs, whatever the retention policy", app::pin_epochs);
    add_one("unpin", "Leaves epochs to the retention policy again", app::unpin_epochs);
  }

  void add_retention() {
    CLI::App* retention =
        add("retention", "Shows or sets which epochs of a VM are kept", kRetentionHelp, [this] {
          if (retention_action_ == "show" && policy_.empty()) {
            return finish(app::show_retention(scope_));
          }
          if (retention_action_ == "set" && !policy_.empty()) {
            return finish(app::set_retention(scope_, policy_));
          }
          return usage_error("retention VM, or retention VM set POLICY (see retention --help)");
        });
    retention->add_option("vm", scope_.vm, "the VM's name")->required();
    retention->add_option("action", retention_action_, "show or set")
        ->check(CLI::IsMember({"show", "set"}))
        ->capture_default_str();
    retention->add_option("policy", policy_,
                          "for set, as window=10m,minutely=1h,hourly=1d,daily=30d");
  }

  void add_quota() {
    CLI::App* quota = add("quota", "Sets what the epochs of a VM may take", kQuotaHelp, [this] {
      if (quota_ == "none") return finish(app::set_quota(scope_, 0));
      if (const auto bytes = app::parse_size(quota_)) {
        return finish(app::set_quota(scope_, *bytes));
      }
      return usage_error("'" + quota_ + "' is neither a size such as 200G nor 'none'");
    });
    quota->add_option("vm", scope_.vm, "the VM's name")->required();
    quota->add_option("size", quota_, "a number with K, M, G or T, or none")->required();
  }

  void add_status() {
    CLI::App* status = add("status", "What the running store holds and does", kStatusHelp, [this] {
      app::ReplayStatusOptions options;
      for (const std::string& text : prices_) {
        const std::size_t equals = text.find('=');
        const std::string kind = text.substr(0, equals);
        double price = -1;
        const char* const end = text.data() + text.size();
        if (equals != std::string::npos && (kind == "ssd" || kind == "hdd")) {
          const auto parsed = std::from_chars(text.data() + equals + 1, end, price);
          if (parsed.ec != std::errc{} || parsed.ptr != end || !std::isfinite(price)) price = -1;
        }
        if (price < 0) return usage_error("--price: '" + text + "' is not of the form ssd=0.08");
        options.prices[kind] = price;
      }
      return finish(app::show_status(scope_, options));
    });
    status->add_option("--price", prices_, "ssd=PRICE or hdd=PRICE of a GiB for a month")
        ->allow_extra_args(false);
  }

  void add_vm_and_epoch(CLI::App* command) {
    command->add_option("vm", scope_.vm, "the VM's name; not needed if the store holds only one");
    command->add_option("--epoch", epoch_, "number of the epoch, or latest")->capture_default_str();
  }

  CLI::App& cli_;
  app::ReplayScope& scope_;
  std::vector<std::pair<CLI::App*, std::function<int()>>> actions_;
  std::string epoch_ = "latest";
  std::string diff_a_;
  std::string diff_b_;
  app::ReplayDiffOptions diff_;
  bool deep_ = false;
  RawRestoreOptions raw_;
  app::ReplayRestoreOptions restore_;
  app::ReplayExportOptions export_;
  std::vector<std::string> pins_;
  std::string retention_action_ = "show";
  std::string policy_;
  std::string quota_;
  std::vector<std::string> prices_;
};

}  // namespace

int main(int argc, char** argv) {
  open_standard_streams();
  app::allow_many_open_files();
  app::ReplayScope scope;
  CLI::App cli{kHelp, "shadow-replay"};
  cli.set_version_flag("--version", VMSHADOW_VERSION);
  cli.require_subcommand(1);
  cli.fallthrough();
  cli.add_option("--store", scope.store, "the store's directory")->required();
  cli.add_flag("--json", scope.json, "one JSON object on stdout");
  app::KeyOptions keys;
  app::add_key_options(cli, keys);
  const Commands commands(cli, scope);
  try {
    cli.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return cli.exit(error);
    return usage_error(std::string(error.what()) + " (see --help)");
  }
  scope.keys = app::key_source(keys);
  return commands.run();
}
