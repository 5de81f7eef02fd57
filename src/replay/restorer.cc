#include "replay/restorer.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <memory>
#include <string_view>
#include <utility>

#include "io/socket.h"
#include "qmp/commands.h"
#include "qmp/session.h"
#include "replay/machine_record.h"

namespace vmshadow::replay {
namespace {

constexpr const char* kDescriptorName = "vmshadow-replay";
constexpr int kSocketBufferBytes = 4 << 20;
/// How often the run state is asked for; QEMU answers only between its own steps of loading.
constexpr std::chrono::milliseconds kPollInterval{2};
/// How long a dying QEMU is given to write its last words.
constexpr std::chrono::milliseconds kLastWords{2000};
constexpr std::string_view kWaitingState = "inmigrate";

using Microseconds = std::chrono::microseconds;

/// Measures one phase after the other.
class PhaseTimer {
 public:
  explicit PhaseTimer(const Clock& clock) : clock_(clock), start_(clock.monotonic()) {}
  Microseconds lap() {
    const MonotonicTime now = clock_.monotonic();
    const auto took = std::chrono::duration_cast<Microseconds>(now - std::exchange(start_, now));
    return took;
  }

 private:
  const Clock& clock_;
  MonotonicTime start_;
};

void pause_briefly() { ::poll(nullptr, 0, static_cast<int>(kPollInterval.count())); }

/// Sends the stream over a connected socket; every piece has the stall timeout to itself.
Result<StreamStats> send_stream(const EpochImage& image, int fd, const RestoreOptions& options) {
  const ByteSink sink = [&](ByteSpan bytes) -> Status {
    auto written = io::write_all(fd, bytes, io::deadline_after(options.stall_timeout));
    if (!written) return fail(std::move(written).error().with_context("sending the state to QEMU"));
    return {};
  };
  return write_stream(image, sink, options.on_progress);
}

Status check_machine(const MachineRecord& record, const qmp::MachineFacts& facts) {
  if (!record.machine_type.empty() && facts.machine_type != record.machine_type) {
    return fail(Errc::invalid_argument,
                fmt::format("QEMU runs machine type '{}', the recorded VM is a '{}': start it with "
                            "-machine {}",
                            facts.machine_type, record.machine_type, record.machine_type));
  }
  if (record.ram_bytes != 0 && facts.ram_bytes != record.ram_bytes) {
    return fail(
        Errc::invalid_argument,
        fmt::format("QEMU has {} bytes of RAM, the recorded VM had {}: start it with -m {}B",
                    facts.ram_bytes, record.ram_bytes, record.ram_bytes));
  }
  return {};
}

/// Refuses a QEMU that is not waiting for a state, before a byte is sent.
Status check_waiting(qmp::Session& session) {
  VMSHADOW_ASSIGN(const qmp::RunState state, qmp::query_status(session));
  if (state.text != kWaitingState) {
    return fail(Errc::invalid_argument,
                fmt::format("QEMU does not wait for a state, it is '{}': start it with -incoming "
                            "defer",
                            state.text));
  }
  return {};
}

/// Restoring by way of a monitor: the QEMU is somebody else's, or `process` is ours.
class MonitoredRestore {
 public:
  MonitoredRestore(const EpochImage& image, const RestoreOptions& options, const Clock& clock,
                   QemuProcess* process)
      : image_(image), options_(options), timer_(clock), process_(process) {}

  Result<RestoreReport> run(const std::string& qmp_path) {
    auto done = restore_through(qmp_path);
    if (!done) return fail(explained(std::move(done).error()));
    return report_;
  }

 private:
  Status restore_through(const std::string& qmp_path) {
    VMSHADOW_ASSIGN(const MachineRecord record, parse_machine_record(image_.machine().json));
    VMSHADOW_ASSIGN(session_, open_session(qmp_path));
    report_.phases.launch = timer_.lap();

    VMSHADOW_ASSIGN(const qmp::MachineFacts facts, qmp::query_machine(*session_));
    VMSHADOW_TRY(check_machine(record, facts));
    VMSHADOW_TRY(check_waiting(*session_));
    VMSHADOW_ASSIGN(const UniqueFd stream, hand_over_stream());
    report_.phases.connect = timer_.lap();

    VMSHADOW_ASSIGN(report_.stream, send_stream(image_, stream.get(), options_));
    report_.phases.send = timer_.lap();
    VMSHADOW_TRY(wait_until_loaded());
    report_.phases.load = timer_.lap();
    return {};
  }

  /// A QEMU just started needs a moment before its monitor answers.
  Result<std::unique_ptr<qmp::Session>> open_session(const std::string& qmp_path) {
    const io::Deadline deadline = io::deadline_after(options_.launch_timeout);
    for (;;) {
      auto session = qmp::Session::connect(qmp_path);
      if (session || process_ == nullptr) return session;
      const bool not_yet =
          session.error().code == Errc::not_found || session.error().code == Errc::closed;
      if (!not_yet || process_->ended() || std::chrono::steady_clock::now() >= deadline) {
        return session;
      }
      pause_briefly();
    }
  }

  /// One end of a socket pair goes to QEMU through its monitor: no path that both must reach.
  Result<UniqueFd> hand_over_stream() {
    VMSHADOW_ASSIGN(auto ends, io::socket_pair());
    io::set_socket_buffers(ends.first.get(), kSocketBufferBytes);
    VMSHADOW_TRY(qmp::getfd(*session_, kDescriptorName, ends.second.get()));
    auto accepted = qmp::migrate_incoming(*session_, fmt::format("fd:{}", kDescriptorName));
    if (!accepted) {
      if (!session_->closed()) static_cast<void>(qmp::closefd(*session_, kDescriptorName));
      return fail(std::move(accepted).error());
    }
    return std::move(ends.first);
  }

  Status wait_until_loaded() {
    const io::Deadline deadline = io::deadline_after(options_.stall_timeout);
    for (;;) {
      VMSHADOW_ASSIGN(const qmp::RunState state, qmp::query_status(*session_));
      if (state.text != kWaitingState) {
        report_.run_state = state.text;
        return {};
      }
      VMSHADOW_ASSIGN(const qmp::MigrationInfo migration, qmp::query_migrate(*session_));
      if (migration.status == "failed") {
        return fail(Errc::protocol,
                    fmt::format("QEMU did not accept the state{}{}",
                                migration.error.empty() ? "" : ": ", migration.error));
      }
      if (std::chrono::steady_clock::now() >= deadline) {
        return fail(Errc::timed_out,
                    fmt::format("QEMU has the whole state, but does not run after {} s",
                                options_.stall_timeout.count() / 1000));
      }
      pause_briefly();
    }
  }

  /// A QEMU that cannot load a state says why on its stderr and exits: what we see is a lost
  /// connection, what the operator must see is that.
  Error explained(Error error) {
    const bool lost = error.code == Errc::closed || error.code == Errc::not_found ||
                      error.code == Errc::protocol || error.code == Errc::timed_out;
    if (!lost) return error;
    if (process_ == nullptr) {
      if (session_ == nullptr) return error;
      error.message += "; its own standard error says why";
      return error;
    }
    const io::Deadline deadline = io::deadline_after(kLastWords);
    while (!process_->ended() && std::chrono::steady_clock::now() < deadline) pause_briefly();
    const auto ended = process_->ended();
    const std::string tail = process_->log_tail();
    std::string message = ended ? fmt::format("QEMU {} while it was given the state", *ended)
                                : std::move(error.message);
    if (ended && session_ == nullptr) message = fmt::format("QEMU {} as it started", *ended);
    message += tail.empty() ? fmt::format(" (its log {} is empty)", process_->log_path())
                            : fmt::format("; it said: {} (from {})", tail, process_->log_path());
    return Error{ended ? Errc::closed : error.code, std::move(message)};
  }

  const EpochImage& image_;
  const RestoreOptions& options_;
  PhaseTimer timer_;
  QemuProcess* const process_;
  std::unique_ptr<qmp::Session> session_;
  RestoreReport report_;
};

Result<UniqueFd> connect_incoming(const std::string& address, io::Deadline deadline) {
  constexpr std::string_view kUnix = "unix:";
  constexpr std::string_view kTcp = "tcp:";
  if (address.starts_with(kUnix)) {
    return io::connect_unix(address.substr(kUnix.size()), deadline);
  }
  if (address.starts_with(kTcp)) {
    VMSHADOW_ASSIGN(const io::TcpAddress tcp, io::parse_tcp_address(address.substr(kTcp.size())));
    return io::connect_tcp(tcp, deadline);
  }
  return fail(Errc::invalid_argument,
              fmt::format("'{}' is not an address QEMU waits on: expected unix:PATH or "
                          "tcp:HOST:PORT",
                          address));
}

/// Waits until QEMU closes its end, having read everything.
Status wait_until_read(int fd, const RestoreOptions& options) {
  ::shutdown(fd, SHUT_WR);
  std::array<std::byte, 64> ignored;
  const auto got = io::read_some(fd, ignored, io::deadline_after(options.stall_timeout));
  if (got) return {};
  if (got.error().code == Errc::timed_out) {
    return fail(Errc::timed_out, "QEMU was sent the whole state, but does not finish reading it");
  }
  return fail(Errc::closed,
              "QEMU closed the connection before it had read the whole state: its own standard "
              "error says why");
}

Result<RestoreReport> restore_into(const EpochImage& image, const LaunchTarget& target,
                                   const RestoreOptions& options, const Clock& clock) {
  PhaseTimer timer(clock);
  VMSHADOW_ASSIGN(QemuProcess process, QemuProcess::start(target.command, target.log_path));
  const Microseconds start = timer.lap();
  MonitoredRestore monitored(image, options, clock, &process);
  VMSHADOW_ASSIGN(RestoreReport report, monitored.run(target.qmp_path));
  report.phases.launch += start;
  report.pid = process.pid();
  process.release();
  return report;
}

Result<RestoreReport> restore_into(const EpochImage& image, const MonitorTarget& target,
                                   const RestoreOptions& options, const Clock& clock) {
  return MonitoredRestore(image, options, clock, nullptr).run(target.qmp_path);
}

Result<RestoreReport> restore_into(const EpochImage& image, const IncomingTarget& target,
                                   const RestoreOptions& options, const Clock& clock) {
  PhaseTimer timer(clock);
  RestoreReport report;
  VMSHADOW_ASSIGN(const UniqueFd fd,
                  connect_incoming(target.address, io::deadline_after(options.launch_timeout)));
  io::set_socket_buffers(fd.get(), kSocketBufferBytes);
  report.phases.connect = timer.lap();
  auto sent = send_stream(image, fd.get(), options);
  if (!sent) {
    Error error = std::move(sent).error();
    if (error.code == Errc::closed) error.message += "; its own standard error says why";
    return fail(std::move(error));
  }
  report.stream = *sent;
  report.phases.send = timer.lap();
  VMSHADOW_TRY(wait_until_read(fd.get(), options));
  report.phases.load = timer.lap();
  return report;
}

}  // namespace

Result<RestoreReport> restore(const EpochImage& image, const RestoreTarget& target,
                              const RestoreOptions& options, const Clock& clock) {
  return std::visit([&](const auto& chosen) { return restore_into(image, chosen, options, clock); },
                    target);
}

}  // namespace vmshadow::replay
