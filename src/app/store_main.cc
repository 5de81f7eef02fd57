// vmshadow-store: keeps the shadows of many VMs. Options, store, receiver, signals; nothing else.
#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include <memory>

#include "app/control_socket.h"
#include "app/logging.h"
#include "app/stop_signal.h"
#include "app/store_adapter.h"
#include "io/append_file.h"
#include "ship/receiver.h"
#include "store/store.h"

namespace {

using namespace vmshadow;  // NOLINT(google-build-using-namespace): a main, not a header

constexpr int kExitFailed = 1;
constexpr int kExitUsage = 2;

constexpr const char* kHelp =
    R"(Receives the epochs of VMs from their sidecars and keeps them in a journal, durably, before it
acknowledges them. shadow-replay reads the same directory, also while this program runs.

  vmshadow-store --dir /var/lib/vmshadow --listen 192.0.2.7:7410

The stream is the VMs' memory and is not encrypted yet: listen on a network you trust. Stop it with
SIGINT or SIGTERM; what was acknowledged survives a crash of the program and of the machine.

While it runs, shadow-replay's pin, unpin and retention reach it through the socket control.sock in its
directory, which only the directory's owner may use.

Exit codes: 0 stopped in order, 1 failed, 2 usage.)";

struct StoreProgram {
  std::string directory;
  io::TcpAddress listen;
  io::FileBackend backend{};
  bool announce_port{};

  [[nodiscard]] Status run(const app::StopSignal& stop) const;
};

void report_recovery(const store::Store& opened, const std::string& directory) {
  if (const auto& tail = opened.torn_tail()) {
    spdlog::info("{}: cut off a torn tail of {} bytes: {}", directory, tail->bytes, tail->what);
  }
  for (const store::Damage& damage : opened.damage()) {
    spdlog::error("{}: damaged: {}", directory, damage.text());
  }
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

Status StoreProgram::run(const app::StopSignal& stop) const {
  VMSHADOW_ASSIGN(const auto opened,
                  store::Store::open(directory, system_clock(), [this] { return io::make_file_system(backend); }));
  report_recovery(*opened, directory);
  app::StoreAdapter control(*opened, directory);
  const auto control_server = serve_control(directory, control);
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
  StoreProgram program;
  std::string listen = "127.0.0.1:7410";
  bool no_uring = false;
  bool verbose = false;

  CLI::App cli{kHelp, "vmshadow-store"};
  cli.set_version_flag("--version", VMSHADOW_VERSION);
  cli.add_option("--dir", program.directory, "the store's directory; made if it does not exist")
      ->required();
  cli.add_option("--listen", listen, "HOST:PORT to listen on; port 0 picks one")
      ->capture_default_str();
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
