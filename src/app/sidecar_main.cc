// vmshadow-sidecar: protects one VM. Options to SidecarOptions, nothing else.
#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <malloc.h>
#include <nlohmann/json.hpp>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <optional>

#include "app/logging.h"
#include "app/metrics_options.h"
#include "app/metrics_process.h"
#include "app/release_command.h"
#include "app/report_stream.h"
#include "app/sidecar.h"
#include "app/sidecar_metrics.h"
#include "base/say.h"
#include "base/shared_memory.h"
#include "base/standard_streams.h"
#include "capture/worker_guard.h"

namespace {

using namespace vmshadow;  // NOLINT(google-build-using-namespace): a main, not a header

constexpr const char* kHelp =
    R"(Protects one running VM: takes consistent epochs (changed RAM and device state) through the VM's
QMP monitor and ships them to a vmshadow-store. The VM's QEMU needs nothing special but a monitor
for us alone, for example:

  qemu-system-x86_64 ... -qmp unix:/run/vm1.qmp,server=on,wait=off
  vmshadow-sidecar --vm vm1 --qmp /run/vm1.qmp --store 192.0.2.7:7410

Epochs come at a set interval, or at the cadence that a target lag needs:

  vmshadow-sidecar ... --target-lag-ms 500 --pause-budget 3

takes as few epochs as keep the lag below 500 ms, and fewer where the guest would stand still for
more than 3 % of its time; the sidecar then says what can be held. The encoder runs on processors
that nothing else wants, and compresses less while they are wanted (/proc/pressure/cpu).

Stop it with SIGINT or SIGTERM: the VM is released and runs on. Without output commit a failover may
lose what the guest did since the newest committed epoch: that is the lag shown.

It is two processes: the one that captures, and a guard above it. Whatever becomes of the first, the
guard sees the VM running and, after a moment, protects it again (a new generation; shipped is what
differs from the store's newest epoch): so too when the store or the link was lost. Closing the terminal it was started from ends it
in order; one that was started without (setsid, a service manager) ignores SIGHUP. Should both
processes be killed, the next start releases the VM first; so does, on its own:

  vmshadow-sidecar --release --qmp /run/vm1.qmp

Where a QEMU's COLO is absent or broken each epoch is a whole migration to the sidecar, of which what
changed is shipped (--source full-pass). The lag is then at least a pass over all RAM long; status line,
JSON and summary say what can be held. While a block job of the VM exists no epoch is taken so.

With --metrics PORT it serves Prometheus metrics (lag, epochs, phases of each pause, what the guard had
to do) from a third, small process that goes on while the other two die and are started again.

While a VM is protected, do not migrate or save it (virsh save, migrate, snapshot with memory), and do
not plug devices: stop the sidecar first. QEMU before 10.0 may end at a `migrate` that comes meanwhile.

Exit codes: 0 stopped in order (--release: the VM runs), 1 failed or cannot be protected (the VM
runs on), 2 usage, 3 the VM is gone.)";

// What is freed shall be the system's again. By itself glibc takes the size of what was freed as a
// hint to have the like from its heap from then on, where one small allocation behind a stream's
// buffers keeps all of them.
void give_back_large_allocations() {
  constexpr int kMappedFromBytes = 128 << 10;
  ::mallopt(M_MMAP_THRESHOLD, kMappedFromBytes);
}

constexpr std::string_view kProgram = "vmshadow-sidecar";

/// nullopt: none. The VM does not wait for its metrics, nor is it without protection for want of
/// them: what they lack is said.
std::optional<app::MetricsProcess> start_metrics(std::optional<app::MetricsServer::Options> wanted,
                                                 const app::SidecarOptions& options,
                                                 const app::SidecarFigures& figures) {
  if (!wanted) return std::nullopt;
  const app::SidecarFacts facts{options.vm_name, options.pause_deadline};
  const bool json = options.report == app::ReportStyle::json_lines;
  auto process = app::MetricsProcess::start(
      *std::move(wanted),
      {.page = [&figures, facts] { return app::sidecar_metrics(figures, facts, system_clock()); },
       .announce =
           [json](const std::string& url) {
             if (!json) return say(kProgram, "metrics at " + url);
             write_line(STDOUT_FILENO, nlohmann::json{{"event", "metrics"}, {"url", url}}.dump());
           },
       .say = [](const std::string& why) { say(kProgram, why); }});
  if (process) return *std::move(process);
  say(kProgram, process.error().message + ": there are no metrics");
  return std::nullopt;
}

std::string missed_text(std::uint64_t lines) {
  return nlohmann::json{{"event", "missed"}, {"lines", lines}}.dump() + "\n";
}

}  // namespace

int main(int argc, char** argv) {
  open_standard_streams();
  app::SidecarOptions options;
  std::string store;
  std::uint64_t interval_ms = 200;
  std::uint64_t target_lag_ms = 0;
  double pause_budget_percent = 5;
  double cpu_budget_percent = 0;
  std::uint64_t pause_deadline_ms = 300;
  std::uint64_t retry_most_s = 60;
  std::uint64_t epochs = 0;
  std::uint64_t disk_buffer_mib = 256;
  bool json = false;
  bool quiet = false;
  bool verbose = false;
  bool release = false;
  app::MetricsOptions metrics;

  CLI::App cli{kHelp, "vmshadow-sidecar"};
  cli.set_version_flag("--version", VMSHADOW_VERSION);
  cli.add_option("--vm", options.vm_name, "the VM's name in the store");
  cli.add_option("--qmp", options.qmp_path, "unix socket of a QMP monitor of this VM")->required();
  cli.add_option("--store", store, "the store's HOST:PORT");
  auto* interval_option =
      cli.add_option("--interval-ms", interval_ms, "time between epochs, in milliseconds")
          ->capture_default_str()
          ->check(CLI::Range(std::uint64_t{1}, std::uint64_t{86'400'000}));
  auto* target_option =
      cli.add_option("--target-lag-ms", target_lag_ms,
                     "how old the newest durable epoch may become; epochs come accordingly")
          ->check(CLI::Range(std::uint64_t{20}, std::uint64_t{86'400'000}))
          ->excludes(interval_option);
  cli.add_option("--pause-budget", pause_budget_percent,
                 "share of its time for which the guest may stand still, in per cent")
      ->capture_default_str()
      ->check(CLI::Range(0.1, 90.0))
      ->needs(target_option);
  auto* cpu_option = cli.add_option("--cpu-budget", cpu_budget_percent,
                                    "processor time the sidecar may take, in per cent of a core")
                         ->check(CLI::Range(0.1, 10'000.0))
                         ->needs(target_option);
  std::string source = "auto";
  cli.add_option("--source", source,
                 "how epochs are taken. colo: QEMU sends only what changed; full-pass: a whole "
                 "migration for each; auto: colo, or full passes where a QEMU's COLO is absent or "
                 "broken")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "colo", "full-pass"}));
  const std::map<std::string, ThreadPriority> priorities = {{"idle", ThreadPriority::idle},
                                                            {"low", ThreadPriority::low},
                                                            {"normal", ThreadPriority::normal}};
  cli.add_option("--encoder-priority", options.encoder_priority,
                 "of the thread that compresses and ships. idle: on a host whose processors are "
                 "all busy the lag grows rather than a guest slows down; low: nice 19")
      ->default_str("idle")
      ->transform(CLI::CheckedTransformer(priorities));
  auto* epochs_option = cli.add_option("--epochs", epochs, "stop after this many epochs");
  cli.add_option("--pause-deadline-ms", pause_deadline_ms,
                 "the guard ends a pause of the VM that lasts longer, and protects it anew")
      ->capture_default_str()
      ->check(CLI::Range(std::uint64_t{50}, std::uint64_t{600'000}));
  cli.add_option("--guard-qmp", options.guard_qmp_path,
                 "a second QMP monitor, for the guard alone: held open in advance, it frees even a "
                 "QEMU whose main loop is stuck");
  cli.add_option("--retry-most-s", retry_most_s,
                 "the longest wait before the VM is protected again, in seconds: it begins with "
                 "1 s and doubles while no protection holds for a minute")
      ->capture_default_str()
      ->check(CLI::Range(std::uint64_t{1}, std::uint64_t{3600}));
  cli.add_flag("--once", options.once,
               "end when protection is lost, instead of protecting the VM again");
  cli.add_flag("--release", release,
               "release a VM that a killed sidecar left paused, and do nothing else");
  cli.add_flag("--ignore-disks", options.ignore_disks,
               "protect RAM and devices alone of a VM that also has writable disks: a restore then "
               "needs disks of the same moment from elsewhere");
  cli.add_option("--disk-buffer-mib", disk_buffer_mib,
                 "memory for what is written to one disk between two epochs, in MiB; where more is "
                 "written it stays in QEMU until there is room")
      ->capture_default_str()
      ->check(CLI::Range(std::uint64_t{64}, std::uint64_t{65'536}));
  cli.add_flag(
      "--ship-all", options.ship_all,
      "ship all RAM at the start; otherwise only what differs from the newest epoch that the "
      "store has of this VM");
  app::add_metrics_options(cli, metrics);
  cli.add_flag("--json", json, "one JSON object a line on stdout: attached, epoch, summary");
  cli.add_flag("--quiet", quiet, "no status line and no summary");
  cli.add_flag("--verbose", verbose, "log more");
  try {
    cli.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const int code = cli.exit(error);
    return code == 0 ? app::kExitOk : app::kExitUsage;
  }
  if (release) return app::run_release(options.qmp_path);
  if (options.vm_name.empty() || store.empty()) {
    std::fprintf(stderr, "vmshadow-sidecar: --vm and --store are required (or --release)\n");
    return app::kExitUsage;
  }
  if (!is_valid_vm_name(options.vm_name)) {
    std::fprintf(stderr,
                 "vmshadow-sidecar: '%s' is not a VM name: use 1 to %zu of letters, digits, '.', "
                 "'_', '-'\n",
                 options.vm_name.c_str(), kVmNameBytesMax);
    return app::kExitUsage;
  }
  const auto address = io::parse_tcp_address(store);
  if (!address) {
    std::fprintf(stderr, "vmshadow-sidecar: --store: %s\n", address.error().message.c_str());
    return app::kExitUsage;
  }
  options.store = *address;
  auto metrics_server = app::metrics_server_options(metrics);
  if (!metrics_server) {
    say(kProgram, metrics_server.error().message);
    return app::kExitUsage;
  }
  options.disk_buffer_bytes = static_cast<std::size_t>(disk_buffer_mib) << 20;
  if (source == "colo") options.source = capture::CaptureKind::colo;
  if (source == "full-pass") options.source = capture::CaptureKind::full_pass;
  options.interval = std::chrono::milliseconds{interval_ms};
  options.pause_deadline = std::chrono::milliseconds{pause_deadline_ms};
  if (*target_option) {
    capture::CadenceOptions cadence;
    cadence.target_lag = std::chrono::milliseconds{target_lag_ms};
    cadence.pause_budget = pause_budget_percent / 100;
    if (*cpu_option) cadence.cpu_budget = cpu_budget_percent / 100;
    cadence.interval_max = std::max(cadence.interval_max, cadence.target_lag);
    // Well below what the guard ends.
    cadence.pause_max = options.pause_deadline / 2;
    options.cadence = cadence;
  }
  if (*epochs_option) options.epochs = epochs;
  if (json) {
    options.report = app::ReportStyle::json_lines;
  } else if (!quiet) {
    options.report =
        ::isatty(STDERR_FILENO) != 0 ? app::ReportStyle::terminal : app::ReportStyle::quiet;
  }
  const auto figures = make_shared_with_children<app::SidecarFigures>();
  if (!figures) {
    say(kProgram, figures.error().message);
    return app::kExitFailed;
  }
  const auto metrics_process = start_metrics(*std::move(metrics_server), options, **figures);

  capture::GuardOptions guard;
  guard.monitor = options.qmp_path;
  guard.own_monitor = options.guard_qmp_path;
  guard.pause_deadline = options.pause_deadline;
  guard.retry_most = std::chrono::seconds{retry_most_s};
  guard.once = options.once;
  guard.verbose = verbose;
  guard.counts = &(*figures)->guard;
  give_back_large_allocations();
  return capture::run_guarded(guard, [&](capture::GuardFlags& flags) {
    app::set_up_logging("vmshadow-sidecar", verbose, std::make_shared<app::NeverWaitingStderr>());
    const auto stop = app::StopSignal::create();
    if (!stop) {
      say(kProgram, stop.error().message);
      return app::kExitFailed;
    }
    const auto report = json ? app::ReportStream::open(STDOUT_FILENO, missed_text)
                             : app::ReportStream::open(STDERR_FILENO);
    if (!report) {
      say(kProgram, report.error().message);
      return app::kExitFailed;
    }
    return app::run_sidecar(options, *stop, flags, **figures, (*report)->file());
  });
}
