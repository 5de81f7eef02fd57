// The real programs around a guest: a store, a sidecar, a restore; started, told, stopped and
// judged as an operator would, through their command lines, exit codes and words.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <vmshadow/result.h>
#include <vmshadow/shadow_reader.h>

#include "io/socket.h"
#include "support/console.h"
#include "support/process.h"
#include "support/qemu_guest.h"
#include "support/temp_dir.h"
#include "support/witness_report.h"

namespace vmshadow::test {

/// A program of this build: "vmshadow-store", "vmshadow-sidecar", "shadow-replay".
[[nodiscard]] std::string program_path(const std::string& name);

/// A vmshadow-store on loopback.
class StoreProgram {
 public:
  /// `extra_args` go behind --dir and --listen. Waits until it listens.
  [[nodiscard]] static Result<StoreProgram> start(const std::string& directory,
                                                  std::vector<std::string> extra_args = {},
                                                  std::uint16_t port = 0);
  [[nodiscard]] std::uint16_t port() const { return port_; }
  [[nodiscard]] std::string address() const { return "127.0.0.1:" + std::to_string(port_); }
  [[nodiscard]] const std::string& directory() const { return directory_; }
  [[nodiscard]] Process& process() { return *process_; }
  /// What it wrote on stderr.
  [[nodiscard]] std::string messages() const;
  /// SIGTERM, and its exit.
  [[nodiscard]] Result<ExitStatus> stop();

 private:
  std::string directory_;
  std::shared_ptr<TempDir> scratch_ = std::make_shared<TempDir>();
  std::optional<Process> process_;
  std::uint16_t port_{};
};

struct SidecarConfig {
  std::string vm = "vm1";
  std::string qmp_path;
  std::string store;                        ///< HOST:PORT
  std::chrono::milliseconds interval{200};  ///< 0: no --interval-ms, the extra arguments say it
  std::vector<std::string> extra_args;
  /// With --once: most tests are about the end of a protection, not about its return.
  bool once = true;
  /// Long by default: on a loaded test machine a pause is no sign of a hang.
  std::chrono::milliseconds pause_deadline{10'000};
};

/// The worker of a sidecar, by its guard's process id, or the process that serves its metrics.
enum class SidecarChild { worker, metrics };
[[nodiscard]] Result<pid_t> sidecar_child(pid_t guard, SidecarChild which);

/// A vmshadow-sidecar with --json.
class SidecarProgram {
 public:
  [[nodiscard]] static Result<SidecarProgram> start(const SidecarConfig& config);
  [[nodiscard]] Process& process() { return *process_; }
  /// The worker under the guard.
  [[nodiscard]] Result<pid_t> worker_pid() const {
    return sidecar_child(process_->pid(), SidecarChild::worker);
  }
  /// The process that serves metrics, of a sidecar that was told to.
  [[nodiscard]] Result<pid_t> metrics_pid() const {
    return sidecar_child(process_->pid(), SidecarChild::metrics);
  }
  [[nodiscard]] std::string messages() const;
  /// The JSON lines so far, oldest first.
  [[nodiscard]] std::vector<nlohmann::json> lines() const;
  /// Epoch lines so far.
  [[nodiscard]] std::size_t epochs() const;
  /// How often it began to protect.
  [[nodiscard]] std::size_t attachments() const;
  [[nodiscard]] std::optional<Epoch> last_epoch() const;
  /// The summary; nullopt before the end.
  [[nodiscard]] std::optional<nlohmann::json> summary() const;
  /// Waits for `count` epoch lines in all. Errc::closed with its words if it ended before.
  [[nodiscard]] Status wait_for_epochs(std::size_t count, io::Deadline deadline);
  /// SIGTERM, and its exit.
  [[nodiscard]] Result<ExitStatus> stop();

 private:
  std::shared_ptr<TempDir> scratch_ = std::make_shared<TempDir>();
  std::optional<Process> process_;
};

struct RestoreConfig {
  std::string store_directory;
  std::string vm;
  std::string epoch = "latest";  ///< or a number
  /// Of the guest whose command line the epoch carries; that need not run any more.
  GuestPlaces original;
  /// "NAME=VALUE" for the new QEMU.
  std::vector<std::string> env;
  std::string keys{};   ///< a directory, for encrypted epochs; empty: none
  std::string disks{};  ///< a folder for the epoch's disks; empty: it has none
};

/// A guest brought back by `shadow-replay restore`, started from the recorded machine description
/// with its paths moved to a directory of its own. Killed with this object.
class RestoredGuest {
 public:
  struct Timing {
    MonotonicTime asked;                  ///< just before shadow-replay was started
    std::chrono::microseconds replied{};  ///< until it had reported success
  };
  [[nodiscard]] static Result<std::unique_ptr<RestoredGuest>> restore(const RestoreConfig& config);
  /// Without an environment: for guests that are not protected again.
  [[nodiscard]] static Result<std::unique_ptr<RestoredGuest>> restore(
      const std::string& store_directory, const std::string& vm, const std::string& epoch,
      const QemuGuest& original) {
    return restore({store_directory, vm, epoch, original.places(), {}});
  }
  ~RestoredGuest();

  /// shadow-replay's own JSON report.
  [[nodiscard]] const nlohmann::json& report() const;
  [[nodiscard]] Epoch epoch() const;
  [[nodiscard]] const Timing& timing() const { return timing_; }
  [[nodiscard]] Console& console() { return *console_; }
  [[nodiscard]] Console& witness() { return *witness_; }
  [[nodiscard]] std::string qmp_path() const;
  /// For the restore of an epoch taken from this guest.
  [[nodiscard]] GuestPlaces places() const;
  /// What its QEMU said.
  [[nodiscard]] std::string messages() const;
  /// SIGKILL, as a power failure.
  void kill();

 private:
  RestoredGuest() = default;
  TempDir directory_;
  std::unique_ptr<Console> console_owned_;
  std::unique_ptr<Console> witness_owned_;
  Console* console_ = nullptr;
  Console* witness_ = nullptr;
  Timing timing_;
  std::unique_ptr<nlohmann::json> report_;
};

/// The verdict on a restored witness: reads the epoch's control page from the store, waits for
/// `reports` whole lines of the restored guest, compares with what the primary had printed.
[[nodiscard]] Result<WitnessVerdict> judge(const std::string& store_directory,
                                           const std::string& vm, Console& primary,
                                           RestoredGuest& restored, std::size_t reports = 20,
                                           const std::string& keys = {});

/// Runs a program to its end; what it printed.
struct Ran {
  ExitStatus status;
  std::string out;
  std::string err;
};
[[nodiscard]] Result<Ran> run_program(std::vector<std::string> argv,
                                      std::chrono::seconds limit = std::chrono::seconds(60));

}  // namespace vmshadow::test
