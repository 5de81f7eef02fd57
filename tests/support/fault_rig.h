// What every fault test asks afterwards: one clear sentence, nothing acknowledged lost, the guest
// runs on, and it can be protected and restored again.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>

#include <chrono>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "io/socket.h"
#include "qmp/session.h"
#include "support/replication_rig.h"

namespace vmshadow::test {

/// For what a test cannot go on without: GoogleTest reports the exception as its failure.
template <class T>
T must(Result<T> result) {
  if (!result) throw std::runtime_error(result.error().message);
  return *std::move(result);
}
inline void must(const Status& status) {
  if (!status) throw std::runtime_error(status.error().message);
}

/// A safety net for what a fault test waits for.
inline constexpr std::chrono::seconds kFaultPatience{120};

template <class Ready>
void wait_until(Ready ready) {
  const auto deadline = io::deadline_after(kFaultPatience);
  while (!ready()) {
    if (io::Deadline::clock::now() >= deadline) throw std::runtime_error("it does not happen");
    ::poll(nullptr, 0, 5);
  }
}

/// The lines of `text` that begin with "PROGRAM: ".
[[nodiscard]] std::vector<std::string> sentences(const std::string& text,
                                                 const std::string& program);
/// That `text` is one sentence of `program` that holds all `words`.
void expect_sentence(const std::string& text, const std::string& program,
                     const std::vector<std::string>& words);

/// Waits for a sidecar's end, expects its exit code and one sentence with these words.
void expect_end(SidecarProgram& sidecar, int code, const std::vector<std::string>& words);

/// The epochs that a sidecar reported as acknowledged.
[[nodiscard]] std::set<std::uint64_t> acknowledged_epochs(const SidecarProgram& sidecar);
/// The epochs of `vm` in `shadow-replay list --json`.
[[nodiscard]] std::set<std::uint64_t> stored_epochs(const std::string& store_directory,
                                                    const std::string& vm);

/// A guest whose checkpoints take long, so that a moment at random is often inside one.
[[nodiscard]] std::vector<std::string> busy_witness();

/// Halts the worker where the VM stands still for it: between its REPLY and its acknowledgement.
/// False if no sample met that moment.
[[nodiscard]] bool halt_at_the_cut(qmp::Session& observer, pid_t worker);

/// How long a VM stands still, by the stamps of QEMU's events: a guest's own reports also tell how
/// long it waited for a processor of a busy host.
class StillWatch {
 public:
  explicit StillWatch(const std::string& observer_qmp_path);
  [[nodiscard]] qmp::Session& monitor() { return *monitor_; }
  /// Waits for the VM to be stopped after the watch began, so that no stop is seen in part.
  void wait_for_a_stop();
  /// Waits for the VM to run; the longest it stood still since the watch began.
  [[nodiscard]] std::chrono::milliseconds wait_and_tell_longest();

 private:
  void note(const qmp::Event& event);

  std::mutex mutex_;
  std::optional<std::chrono::microseconds> stopped_at_;
  std::size_t stops_ = 0;
  std::chrono::microseconds longest_{};
  std::unique_ptr<qmp::Session> monitor_;  ///< calls note(): gone first
};

/// Guard and worker, as SIGKILL to the process group: nobody is left to release the VM.
void kill_both(SidecarProgram& sidecar, pid_t worker);

/// A bare witness that goes through faults, and a folder for stores.
class FaultRig {
 public:
  explicit FaultRig(std::vector<std::string> extra_args = {},
                    std::vector<std::string> witness = {"arena_mib=8", "pages=200"});
  /// A bare witness of another make.
  explicit FaultRig(const GuestConfig& config);

  [[nodiscard]] QemuGuest& guest() { return *guest_; }
  [[nodiscard]] std::string path(const std::string& name) const { return folder_.file(name); }
  [[nodiscard]] std::string store_directory() const { return path("store"); }
  /// A monitor session for the test, beside the one under test; connected anew each time.
  [[nodiscard]] std::unique_ptr<qmp::Session> observer();
  /// Protects the guest as "vm1" and waits for `epochs`.
  [[nodiscard]] SidecarProgram protect(
      const std::string& store, std::size_t epochs = 3,
      std::chrono::milliseconds interval = std::chrono::milliseconds(20));
  [[nodiscard]] SidecarConfig config(const std::string& store) const;

  /// How long the guest stood still at most since report number `from`, by the host's stamps: the
  /// longest time without a report, less the usual one, in which a guest works.
  [[nodiscard]] std::chrono::milliseconds longest_still(std::size_t from);
  /// The guest runs, QEMU is at rest with COLO off, and reports keep coming without a defect or a
  /// gap of `gap_max`.
  void expect_runs_on(std::chrono::milliseconds gap_max = std::chrono::seconds(5));
  /// The witness's reports alone: no defect, no gap, more to come.
  void expect_reports_go_on(std::chrono::milliseconds gap_max = std::chrono::seconds(5));
  /// All that these sidecars had acknowledged is in the store, which verifies without damage.
  void expect_nothing_lost(const std::set<std::uint64_t>& acknowledged);
  /// A new sidecar, against `store`, takes epochs and stops in order; the newest is restored and
  /// the witness judges it. No gap of `gap_max` in its reports so far.
  void expect_protectable_again(const StoreProgram& store,
                                std::chrono::milliseconds gap_max = std::chrono::seconds(5));
  /// Restores `epoch` and judges it.
  void expect_exact(const std::string& epoch = "latest");

 private:
  TempDir folder_;
  std::unique_ptr<QemuGuest> guest_;
};

}  // namespace vmshadow::test
