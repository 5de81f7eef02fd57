// vmshadow-store: keeps the shadows of many VMs. Options, store, receiver, signals; nothing else.
#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "app/control_socket.h"
#include "app/key_options.h"
#include "app/logging.h"
#include "app/metrics_options.h"
#include "app/metrics_thread.h"
#include "app/open_files.h"
#include "app/stop_signal.h"
#include "app/store_adapter.h"
#include "app/store_metrics.h"
#include "app/tier_option.h"
#include "base/standard_streams.h"
#include "io/append_file.h"
#include "ship/receiver.h"
#include "store/store.h"

namespace {

using namespace vmshadow;  // NOLINT(google-build-using-namespace): a main, not a header

constexpr int kExitFailed = 1;
constexpr int kExitUsage = 2;
constexpr std::size_t kSparesMax = 1024;
/// Files that a new store writes before it has any to keep.
constexpr std::size_t kSparesAhead = 2;

constexpr const char* kHelp =
    R"(Receives the epochs of VMs from their sidecars and keeps them in a journal, durably, before it
acknowledges them. shadow-replay reads the same directory, also while this program runs.

  vmshadow-store --dir /var/lib/vmshadow --listen 192.0.2.7:7410

It keeps every epoch of the last ten minutes, then one a minute for an hour, one an hour for a day and
one a day for thirty days (--retention; shadow-replay sets it for a VM, and pins epochs). What is kept
longer is moved out of the journal into archives. With two kinds of disks, name them all each time:

  vmshadow-store --dir /var/lib/vmshadow --ssd /ssd/vmshadow:200G --hdd /hdd1/vmshadow --hdd /hdd2/vmshadow

The journal and pages that are rewritten again and again stay on SSD; pages at rest go to HDD.

A commit is faster where the disk's blocks were written before. So files of the journal that are not needed
any more are kept for the next ones, up to 256 MiB each, and a new store writes two ahead (--spares);
none while room is short.

What is stored is read again all the time, slowly (--scrub-rate): damage is logged with segment, offset,
VM and epoch, and costs the epochs that need what is lost, no others. Damaged archives are rewritten: pages
of them that are whole by their own checksums, or that the store has once more, are not lost.

With --keys or --key-command every VM's memory, devices and machine description are encrypted before
they touch the disk (AES-256-GCM), each with its own key; a VM without one is refused. What stays
readable: VMs' names, numbers and times of epochs, page numbers, sizes. A key for a VM:

  (umask 077; openssl rand -hex 32 > /etc/vmshadow/keys/web1.key)

Keep a copy elsewhere: whoever loses the key has lost the epochs, for ever. To change it, put the new one
on the file's first line, leave the old one on the second, and let the sidecar attach anew.

The stream from the sidecars is the VMs' memory and is not encrypted yet: listen on a network you trust.
Stop it with SIGINT or SIGTERM; what was acknowledged survives a crash of the program and of the machine.

With --metrics PORT it serves Prometheus metrics: of the VMs, commits, tiers, upkeep and damage.

While it runs, shadow-replay's pin, unpin and retention reach it through the socket control.sock in its
directory, which only the directory's owner may use.

Exit codes: 0 stopped in order, 1 failed, 2 usage.)";

struct StoreProgram {
  std::string directory;
  io::TcpAddress listen;
  io::FileBackend backend{};
  bool announce_port{};
  store::StoreOptions options;
  std::optional<app::MetricsServer::Options> metrics;

  [[nodiscard]] Status set_store_options(const std::vector<std::string>& ssds,
                                         const std::vector<std::string>& hdds,
                                         const std::string& retention);
  [[nodiscard]] Status run(const app::StopSignal& stop) const;
};

Status StoreProgram::set_store_options(const std::vector<std::string>& ssds,
                                       const std::vector<std::string>& hdds,
                                       const std::string& retention) {
  const auto add = [&](store::TierKind kind, const std::vector<std::string>& texts) -> Status {
    for (const std::string& text : texts) {
      VMSHADOW_ASSIGN(options.tiers.emplace_back(), app::parse_tier(kind, text));
    }
    return {};
  };
  VMSHADOW_TRY(add(store::TierKind::ssd, ssds));
  VMSHADOW_TRY(add(store::TierKind::hdd, hdds));
  if (!retention.empty()) {
    auto policy = store::parse_policy(retention);
    if (!policy) return fail(std::move(policy).error().with_context("--retention"));
    options.retention = *policy;
  }
  return {};
}

/// A store without its control channel is a store all the same: it takes epochs.
std::unique_ptr<app::ControlServer> serve_control(const std::string& directory,
                                                  app::StoreControl& control) {
  auto server = app::ControlServer::start(directory, control);
  if (server) return *std::move(server);
  spdlog::warn("no control socket, so no pin, unpin or retention while this runs: {}",
               server.error().message);
  return nullptr;
}

/// Null: none are wanted, or none can be had, which is said: a store takes epochs all the same.
/// `store` outlives them.
std::unique_ptr<app::MetricsThread> serve_metrics(std::optional<app::MetricsServer::Options> wanted,
                                                  const store::Store& store) {
  if (!wanted) return nullptr;
  // What is asked of the store takes locks that its commits need, so not more often than this.
  wanted->page_every = std::chrono::seconds(1);
  auto thread = app::MetricsThread::start(
      *std::move(wanted),
      {.page = [&store] { return app::store_metrics(store, system_clock()); },
       .announce = [](const std::string& url) { spdlog::info("metrics at {}", url); },
       .say = [](const std::string& why) { spdlog::warn("{}", why); }});
  if (thread) return *std::move(thread);
  spdlog::warn("no metrics: {}", thread.error().message);
  return nullptr;
}

Status StoreProgram::run(const app::StopSignal& stop) const {
  VMSHADOW_ASSIGN(
      const auto opened,
      store::Store::open(
          directory, system_clock(), [this] { return io::make_file_system(backend); }, options));
  app::StoreAdapter control(*opened, directory);
  const auto control_server = serve_control(directory, control);
  const auto metrics_thread = serve_metrics(metrics, *opened);
  auto receiving = ship::Receiver::listen(listen, *opened);
  if (!receiving) {
    Error error = std::move(receiving).error();
    if (error.code == Errc::in_use)
      error.message += ": end what listens there, or choose another --listen";
    return fail(std::move(error));
  }
  const auto receiver = *std::move(receiving);
  spdlog::info("store {} listens on {}", directory,
               io::TcpAddress{listen.host, receiver->port()}.text());
  if (announce_port) {
    fmt::print("{}\n", receiver->port());
    std::fflush(stdout);
  }
  return receiver->serve(stop.fd());
}

}  // namespace

int main(int argc, char** argv) {
  open_standard_streams();
  StoreProgram program;
  std::string listen = "127.0.0.1:7410";
  std::vector<std::string> ssds;
  std::vector<std::string> hdds;
  std::string retention;
  std::uint64_t archive_mib = 0;
  std::uint64_t scrub_mib = 8;
  std::size_t spares = store::LogLimits{}.spares_max;
  bool no_uring = false;
  bool verbose = false;

  CLI::App cli{kHelp, "vmshadow-store"};
  cli.set_version_flag("--version", VMSHADOW_VERSION);
  cli.add_option("--dir", program.directory, "the store's directory; made if it does not exist")
      ->required();
  cli.add_option("--listen", listen, "HOST:PORT to listen on; port 0 picks one")
      ->capture_default_str();
  cli.add_option("--ssd", ssds,
                 "PATH[:SIZE], a directory on fast disks and what segments may take of it; may be "
                 "given several times");
  cli.add_option("--hdd", hdds, "the same on slow disks");
  cli.add_option("--retention", retention,
                 "what to keep of VMs that have no policy of their own, such as "
                 "window=10m,minutely=1h,hourly=1d,daily=30d (the default)");
  app::KeyOptions keys;
  app::add_key_options(cli, keys);
  cli.add_option("--archive-rate", archive_mib,
                 "MiB per second that moving to archives may read and write; 0: no limit")
      ->capture_default_str();
  cli.add_option("--scrub-rate", scrub_mib,
                 "MiB per second of what is stored that are read again and checked; 0: none")
      ->capture_default_str();
  cli.add_option("--spares", spares,
                 "files of old journal segments that each disk keeps for new ones; 0: none")
      ->check(CLI::Range(std::size_t{0}, kSparesMax))
      ->capture_default_str();
  app::MetricsOptions metrics;
  app::add_metrics_options(cli, metrics);
  cli.add_flag("--print-port", program.announce_port, "print the port on stdout once listening");
  cli.add_flag("--no-io-uring", no_uring, "write with plain system calls");
  cli.add_flag("--verbose", verbose, "log more");
  try {
    cli.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return cli.exit(error) == 0 ? 0 : kExitUsage;
  }
  const auto address = io::parse_tcp_address(listen);
  if (!address) {
    fmt::print(stderr, "vmshadow-store: --listen: {}\n", address.error().message);
    return kExitUsage;
  }
  program.listen = *address;
  auto metrics_server = app::metrics_server_options(metrics);
  if (!metrics_server) {
    fmt::print(stderr, "vmshadow-store: {}\n", metrics_server.error().message);
    return kExitUsage;
  }
  program.metrics = *std::move(metrics_server);
  if (const auto parsed = program.set_store_options(ssds, hdds, retention); !parsed) {
    fmt::print(stderr, "vmshadow-store: {}\n", parsed.error().message);
    return kExitUsage;
  }
  program.options.keys = app::key_source(keys);
  program.options.maintenance.bytes_per_second = archive_mib << 20;
  program.options.maintenance.scrub_bytes_per_second = scrub_mib << 20;
  program.options.log.spares_max = spares;
  program.options.maintenance.spares_ahead = std::min(spares, kSparesAhead);
  app::allow_many_open_files();
  program.backend = no_uring ? io::FileBackend::syscalls : io::FileBackend::automatic;

  app::set_up_logging("vmshadow-store", verbose);
  const auto stop = app::StopSignal::create();
  if (!stop) {
    fmt::print(stderr, "vmshadow-store: {}\n", stop.error().message);
    return kExitFailed;
  }
  if (const auto status = program.run(*stop); !status) {
    fmt::print(stderr, "vmshadow-store: {}\n", status.error().message);
    return kExitFailed;
  }
  return 0;
}
