// Full passes where it matters most: between the word that lets QEMU complete a migration and
// `cont`, where the VM's life hangs on the sidecar; beside a disk that the guest writes; and under
// a QEMU whose COLO is broken.
#include <nlohmann/json.hpp>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>

#include <array>
#include <atomic>
#include <cstdlib>
#include <fstream>
#include <span>
#include <string_view>
#include <thread>

#include "qmp/commands.h"
#include "support/full_pass_rig.h"
#include "support/prerequisite.h"

namespace vmshadow::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::HasSubstr;
using Json = nlohmann::json;

/// Between a monitor and its client: passes all on, but can keep a `cont` to itself, so that who
/// has sent it waits in the one moment that no sample would meet. Descriptors do not pass.
class MonitorRelay {
 public:
  MonitorRelay(const std::string& path, std::string qmp_path)
      : qmp_path_(std::move(qmp_path)),
        wake_(::eventfd(0, EFD_CLOEXEC)),
        listener_(must(io::listen_unix(path))),
        thread_([this] { serve(); }) {}
  ~MonitorRelay() {
    ::eventfd_write(wake_.get(), 1);
    thread_.join();
  }
  MonitorRelay(const MonitorRelay&) = delete;
  MonitorRelay& operator=(const MonitorRelay&) = delete;

  /// The next one never reaches QEMU.
  void keep_next_cont() { keep_ = true; }
  [[nodiscard]] bool kept() const { return kept_; }

 private:
  void serve() {
    for (;;) {
      auto client = io::accept_connection(listener_.get(), wake_.get(), io::kNoDeadline);
      if (!client || !*client) return;
      const auto qemu = io::connect_unix(qmp_path_, io::deadline_after(kFaultPatience));
      if (qemu && !pass_on((*client)->get(), qemu->get())) return;
    }
  }
  /// False once told to end.
  bool pass_on(int client, int qemu) {
    for (;;) {
      std::array<pollfd, 3> waits{
          {{client, POLLIN, 0}, {qemu, POLLIN, 0}, {wake_.get(), POLLIN, 0}}};
      ::poll(waits.data(), waits.size(), -1);
      if (waits[2].revents != 0) return false;
      if (waits[0].revents != 0 && !copy(client, qemu, true)) return true;
      if (waits[1].revents != 0 && !copy(qemu, client, false)) return true;
    }
  }
  /// What has come; false at the end of either. A client's commands come whole and one by one: it
  /// writes each at once, and waits for the answer.
  bool copy(int from, int to, bool commands) {
    std::array<char, 16384> piece;
    const auto got =
        io::read_some(from, std::as_writable_bytes(std::span(piece)), io::deadline_after({}));
    if (!got || *got == 0) return false;
    const std::string_view text(piece.data(), *got);
    if (commands && keep_ && text.find(R"("cont")") != std::string_view::npos) {
      keep_ = false;
      kept_ = true;
      return true;
    }
    return io::write_all(to, std::as_bytes(std::span(text)), io::deadline_after(kFaultPatience))
        .has_value();
  }

  const std::string qmp_path_;
  const UniqueFd wake_;
  const UniqueFd listener_;
  std::atomic<bool> keep_{false};
  std::atomic<bool> kept_{false};
  std::thread thread_;
};

/// What the VM may stand still beyond the guard's deadline: taking over, and this machine's noise.
constexpr milliseconds kTakeover{200};

/// A worker whose `cont` never reached QEMU, with `rest` to happen then: the guard resumes the VM.
void expect_resumed_by_the_guard(milliseconds deadline, const std::function<void(pid_t)>& rest,
                                 milliseconds still_most, const std::string& words) {
  FaultRig rig({}, busy_witness());
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  MonitorRelay relay(rig.path("relay"), rig.guest().qmp_path());
  SidecarConfig config = by_full_passes(rig, store.address());
  config.qmp_path = rig.path("relay");
  config.pause_deadline = deadline;
  SidecarProgram sidecar = must(SidecarProgram::start(config));
  must(sidecar.wait_for_epochs(3, io::deadline_after(kFaultPatience)));
  const pid_t worker = must(sidecar.worker_pid());
  const std::size_t before = rig.guest().witness().lines().size();
  auto observer = rig.observer();
  relay.keep_next_cont();
  wait_until([&] { return relay.kept(); });
  EXPECT_EQ(run_state(*observer), "postmigrate");
  rest(worker);
  expect_end(sidecar, 1, {words, "the VM was released, runs on"});
  EXPECT_EQ(run_state(*observer), "running");
  observer.reset();
  must(rig.guest().wait_for_reports(rig.guest().witness().lines().size() + 5,
                                    io::deadline_after(kFaultPatience)));
  const milliseconds still = rig.longest_still(before > 0 ? before - 1 : 0);
  GTEST_LOG_(INFO) << "longest pause " << still.count() << " ms";
  EXPECT_LE(still, still_most);
  rig.expect_runs_on(seconds(10));
  expect_settings_untouched(rig);
  rig.expect_nothing_lost(acknowledged_epochs(sidecar));

  // Through a relay no command line is seen, and a restore would need one.
  SidecarProgram again = protect_by_full_passes(rig, store);
  EXPECT_EQ(must(again.stop()).text(), "exit code 0") << again.messages();
  rig.expect_exact();
}

TEST(FullPassHazard, TheWorkerIsKilledBetweenItsWordAndCont) {
  VMSHADOW_REQUIRE(guest_available({}));
  // Long before its deadline: the guard need not wait for that.
  expect_resumed_by_the_guard(
      seconds(10), [](pid_t worker) { ::kill(worker, SIGKILL); }, milliseconds(300) + kTakeover,
      "the worker was killed by signal 9");
}

TEST(FullPassHazard, TheWorkerHangsBetweenItsWordAndCont) {
  VMSHADOW_REQUIRE(guest_available({}));
  expect_resumed_by_the_guard(
      milliseconds(300), [](pid_t) {}, milliseconds(300) + kTakeover,
      "the worker kept the VM stopped for over 300 ms and was killed");
}

// ---- a disk that the guest writes

class FullPassDisk : public testing::Test {
 protected:
  static GuestConfig guest_with_disk(const std::string& image) {
    GuestConfig config;
    config.witness = {"arena_mib=8", "pages=200"};
    config.extra_args = {"-drive", "file=" + image + ",if=none,id=data,format=raw", "-device",
                         "virtio-blk-pci,drive=data,id=vda"};
    return config;
  }
  /// Through QEMU's block layer, as the guest's own writes go.
  static std::string write_to_disk(qmp::Session& observer) {
    return must(observer.execute("human-monitor-command",
                                 {{"command-line", "qemu-io data \"write -P 7 0 4096\""}}))
        .get<std::string>();
  }
};

TEST_F(FullPassDisk, IsRefusedUnlessItIsIgnored) {
  VMSHADOW_REQUIRE(guest_available({}));
  const TempDir folder;
  std::ofstream(folder.file("disk")) << std::string(1 << 20, '\0');
  FaultRig rig(guest_with_disk(folder.file("disk")));
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  SidecarConfig config = by_full_passes(rig, store.address());
  SidecarProgram refused = must(SidecarProgram::start(config));
  expect_end(refused, 1,
             {"VM 'vm1' cannot be protected: it has disks that it writes to (", "vda",
              "--ignore-disks protects RAM and devices alone"});
  EXPECT_EQ(refused.epochs(), 0U);
}

// Each pass ends with QEMU's disks flushed and given up, as a migration's does; `cont` takes them
// back.
TEST_F(FullPassDisk, StaysWritableWhereItIsIgnored) {
  VMSHADOW_REQUIRE(guest_available({}));
  const TempDir folder;
  std::ofstream(folder.file("disk")) << std::string(1 << 20, '\0');
  FaultRig rig(guest_with_disk(folder.file("disk")));
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  SidecarConfig config = by_full_passes(rig, store.address());
  config.extra_args.emplace_back("--ignore-disks");
  config.interval = milliseconds(2000);
  SidecarProgram sidecar = must(SidecarProgram::start(config));
  auto observer = rig.observer();
  for (std::size_t epochs = 1; epochs <= 4; ++epochs) {
    // Long before the next pass: QEMU does not survive a write to a disk that it has let go of.
    must(sidecar.wait_for_epochs(epochs, io::deadline_after(kFaultPatience)));
    EXPECT_THAT(write_to_disk(*observer), ::testing::Not(HasSubstr("rror")));
  }
  EXPECT_EQ(must(sidecar.stop()).text(), "exit code 0") << sidecar.messages();
  EXPECT_THAT(write_to_disk(*observer), ::testing::Not(HasSubstr("rror")));
  char byte = 0;
  std::ifstream(folder.file("disk")).get(byte);
  EXPECT_EQ(byte, 7);
  observer.reset();
  rig.expect_runs_on();
  expect_settings_untouched(rig);
  rig.expect_nothing_lost(acknowledged_epochs(sidecar));
}

// ---- a QEMU whose COLO is broken

constexpr const char* kBrokenColoQemu = "VMSHADOW_BROKEN_COLO_QEMU";

TEST(FullPassFallback, IsTakenByItselfUnderAQemuWithABrokenColo) {
  const char* const qemu = std::getenv(kBrokenColoQemu);
  if (qemu == nullptr) {
    GTEST_SKIP() << kBrokenColoQemu << " names no QEMU of 10.0.0 to 10.0.6 or 10.1";
  }
  GuestConfig config;
  config.qemu = qemu;
  config.witness = {"arena_mib=8", "pages=200"};
  VMSHADOW_REQUIRE(guest_available(config));
  FaultRig rig(config);
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  SidecarProgram sidecar = rig.protect(store.address(), 10);
  EXPECT_THAT(sidecar.messages(), HasSubstr("has a broken COLO"));
  EXPECT_THAT(sidecar.messages(), HasSubstr("using full passes: each epoch reads all RAM"));
  for (const Json& line : sidecar.lines()) {
    if (line.value("event", "") != "attached") continue;
    EXPECT_EQ(line.at("source"), "full-pass");
    EXPECT_THAT(line.at("why").get<std::string>(), HasSubstr("has a broken COLO"));
  }
  EXPECT_EQ(must(sidecar.stop()).text(), "exit code 0") << sidecar.messages();
  GTEST_LOG_(INFO) << sidecar.summary().value().dump();
  const auto parameters = must(qmp::query_migrate_parameters(*rig.observer()));
  EXPECT_EQ(parameters.at("downtime-limit"), 300);
  rig.expect_reports_go_on();
  rig.expect_nothing_lost(acknowledged_epochs(sidecar));
  rig.expect_exact("0");
  rig.expect_exact();

  // Asked for by name, COLO is refused.
  SidecarConfig colo = rig.config(store.address());
  colo.extra_args = {"--source", "colo"};
  SidecarProgram refused = must(SidecarProgram::start(colo));
  expect_end(refused, 1, {"cannot be protected", "has a broken COLO"});
}

}  // namespace
}  // namespace vmshadow::test
