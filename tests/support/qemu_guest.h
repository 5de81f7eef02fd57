// Boots a virtual machine for a test: a witness guest (bare metal or Linux) or a foreign one (a
// distribution's own initramfs, with devices vmshadow knows nothing about).
//
// Serial ports: the witness prints on the bare guest's first and the Linux guest's second port; the
// Linux and foreign guests' console is the first. Monitors: one for the program under test, one for
// the test.
//
// TCG guests get the preload library and a memory size that is not a multiple of 256 KiB: QEMU
// before 9.0 loses dirty pages of other sizes under TCG (its fast path of the dirty-log
// synchronisation).
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <vmshadow/result.h>

#include "support/console.h"
#include "support/guest_shell.h"
#include "support/process.h"
#include "support/temp_dir.h"
#include "support/witness_report.h"

namespace vmshadow::test {

enum class GuestKind { bare, linux_kernel, foreign };
enum class Accelerator {
  automatic,  ///< bare: KVM if usable; else KVM only where the processor has vmx or svm
  kvm,
  tcg,
};

struct GuestConfig {
  GuestKind kind = GuestKind::bare;
  Accelerator accelerator = Accelerator::automatic;
  std::uint64_t memory_mib = 0;  ///< 0: 64 for bare, 256 for Linux, 384 for foreign
  /// Exactly memory_mib even under TCG, to show what goes wrong then.
  bool exact_memory = false;
  /// "key=value" words for the witness: bare/witness_main.cc and linux/witness.cc list them.
  std::vector<std::string> witness;
  std::vector<std::string> extra_args;
  std::string qemu = "qemu-system-x86_64";
  /// Start with `-incoming defer`: waits for a restored state instead of booting.
  bool incoming = false;
};

/// "kvm" or "tcg": what Accelerator::automatic stands for here.
[[nodiscard]] Accelerator choose_accelerator(const GuestConfig& config);
/// KiB of memory the machine gets.
[[nodiscard]] std::uint64_t guest_memory_kib(const GuestConfig& config);
/// Whether everything is there to run it; the message says what to install or allow.
[[nodiscard]] Status guest_available(const GuestConfig& config);
/// The preload library for QEMU under TCG.
[[nodiscard]] std::string tcg_shim_path();

/// Where a guest's command line leads: what a restore has to move to places of its own.
struct GuestPlaces {
  std::string directory;  ///< holds every socket the command line names
  bool has_console{};
  bool has_witness{};
};

class QemuGuest {
 public:
  /// Starts QEMU and returns as soon as both monitors listen. Errors carry QEMU's own words.
  [[nodiscard]] static Result<std::unique_ptr<QemuGuest>> start(const GuestConfig& config);

  [[nodiscard]] const std::vector<std::string>& argv() const { return argv_; }
  /// LD_PRELOAD=… or nothing.
  [[nodiscard]] const std::vector<std::string>& env() const { return env_; }
  [[nodiscard]] Accelerator accelerator() const { return accelerator_; }
  [[nodiscard]] const std::string& qmp_path() const { return qmp_path_; }
  [[nodiscard]] const std::string& observer_qmp_path() const { return observer_path_; }
  [[nodiscard]] const TempDir& directory() const { return directory_; }
  [[nodiscard]] Process& process() { return *process_; }
  /// The Linux or foreign guest's console; the witness's port for bare.
  [[nodiscard]] Console& console() { return *console_; }
  /// Where the reports come. Not for foreign guests.
  [[nodiscard]] Console& witness() { return *witness_; }
  [[nodiscard]] GuestPlaces places() const {
    return {directory_.path(), console_owned_ != nullptr, witness_owned_ != nullptr};
  }
  /// What QEMU said on its standard error.
  [[nodiscard]] std::string messages() const;

  /// Waits for the witness's first `count` reports.
  [[nodiscard]] Status wait_for_reports(std::size_t count, io::Deadline deadline);
  [[nodiscard]] Result<std::vector<WitnessReport>> reports() const;
  /// SIGKILL, as a power failure.
  void kill() { process_->kill(); }

  // ---- foreign and Linux guests: the shell on the console
  [[nodiscard]] Status wait_for_shell(io::Deadline deadline);
  /// run_in_shell() on the console.
  [[nodiscard]] Result<std::string> run_command(const std::string& command, io::Deadline deadline) {
    return run_in_shell(*console_, command, deadline);
  }

 private:
  QemuGuest() = default;
  Status open_consoles(const GuestConfig& config);
  void compose_command(const GuestConfig& config);
  Status wait_for_monitors(io::Deadline deadline);
  [[nodiscard]] Error with_messages(Error error) const;

  TempDir directory_;
  Accelerator accelerator_{};
  GuestKind kind_{};
  std::vector<std::string> argv_;
  std::vector<std::string> env_;
  std::string qmp_path_;
  std::string observer_path_;
  std::unique_ptr<Console> console_owned_;
  std::unique_ptr<Console> witness_owned_;
  Console* console_ = nullptr;
  Console* witness_ = nullptr;
  std::optional<Process> process_;  // before the consoles go: QEMU ends first
};

}  // namespace vmshadow::test
