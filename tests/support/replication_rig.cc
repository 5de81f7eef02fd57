#include "support/replication_rig.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <sstream>

#include "crypt/key_directory.h"
#include "store/reader.h"

namespace vmshadow::test {
namespace {

using Json = nlohmann::json;
using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr seconds kStartWithin{30};
constexpr seconds kStopWithin{30};
constexpr seconds kRestoreWithin{120};
constexpr seconds kReportsWithin{60};

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

template <class Ready>
bool poll_until(io::Deadline deadline, Ready ready) {
  while (!ready()) {
    if (io::Deadline::clock::now() >= deadline) return false;
    ::poll(nullptr, 0, 2);
  }
  return true;
}

}  // namespace

std::string program_path(const std::string& name) {
  const char* directory = std::getenv("VMSHADOW_BUILD_DIR");
  const std::string build = directory != nullptr ? directory : VMSHADOW_BUILD_ROOT;
  return build + (name == "shadow-replay" ? "/tools/" : "/src/app/") + name;
}

Result<Ran> run_program(std::vector<std::string> argv, seconds limit) {
  const TempDir scratch;
  ProcessOptions options;
  options.argv = std::move(argv);
  options.stdout_file = scratch.file("out");
  options.stderr_file = scratch.file("err");
  VMSHADOW_ASSIGN(Process process, Process::spawn(options));
  VMSHADOW_ASSIGN(const ExitStatus status, process.wait(io::deadline_after(limit)));
  return Ran{status, read_file(options.stdout_file), read_file(options.stderr_file)};
}

// ---- store

Result<StoreProgram> StoreProgram::start(const std::string& directory,
                                         std::vector<std::string> extra_args, std::uint16_t port) {
  StoreProgram store;
  store.directory_ = directory;
  ProcessOptions options;
  options.argv = {program_path("vmshadow-store"),    "--dir",       directory, "--listen",
                  fmt::format("127.0.0.1:{}", port), "--print-port"};
  // These stores are small: the files that it writes ahead would be larger than all else in them.
  options.argv.insert(options.argv.end(), {"--spares", "0"});
  options.argv.insert(options.argv.end(), extra_args.begin(), extra_args.end());
  options.stdout_file = store.scratch_->file("port");
  options.stderr_file = store.scratch_->file("messages");
  VMSHADOW_ASSIGN(Process process, Process::spawn(options));
  store.process_.emplace(std::move(process));
  const bool decided = poll_until(io::deadline_after(kStartWithin), [&] {
    return read_file(options.stdout_file).find('\n') != std::string::npos ||
           !store.process_->running();
  });
  store.port_ = static_cast<std::uint16_t>(std::atoi(read_file(options.stdout_file).c_str()));
  if (!decided || store.port_ == 0) {
    return fail(Errc::closed, "the store did not start: " + store.messages());
  }
  return store;
}

std::string StoreProgram::messages() const { return read_file(scratch_->file("messages")); }

Result<ExitStatus> StoreProgram::stop() {
  VMSHADOW_TRY(process_->signal(SIGTERM));
  return process_->wait(io::deadline_after(kStopWithin));
}

// ---- sidecar

Result<SidecarProgram> SidecarProgram::start(const SidecarConfig& config) {
  SidecarProgram sidecar;
  ProcessOptions options;
  options.argv = {program_path("vmshadow-sidecar"),
                  "--vm",
                  config.vm,
                  "--qmp",
                  config.qmp_path,
                  "--store",
                  config.store,
                  "--pause-deadline-ms",
                  std::to_string(config.pause_deadline.count()),
                  "--json"};
  if (config.once) options.argv.emplace_back("--once");
  // Without one: as the extra arguments say.
  if (config.interval.count() > 0) {
    options.argv.insert(options.argv.end(),
                        {"--interval-ms", std::to_string(config.interval.count())});
  }
  options.argv.insert(options.argv.end(), config.extra_args.begin(), config.extra_args.end());
  options.stdout_file = sidecar.scratch_->file("lines");
  options.stderr_file = sidecar.scratch_->file("messages");
  VMSHADOW_ASSIGN(Process process, Process::spawn(options));
  sidecar.process_.emplace(std::move(process));
  return sidecar;
}

Result<pid_t> sidecar_child(pid_t guard, SidecarChild which) {
  const bool metrics = which == SidecarChild::metrics;
  std::istringstream children(read_file(fmt::format("/proc/{0}/task/{0}/children", guard)));
  for (pid_t pid = 0; children >> pid;) {
    if ((read_file(fmt::format("/proc/{}/comm", pid)) == "vms-metrics\n") == metrics) return pid;
  }
  return fail(Errc::not_found,
              metrics ? "the sidecar serves no metrics" : "the sidecar has no worker");
}

std::string SidecarProgram::messages() const { return read_file(scratch_->file("messages")); }

std::vector<Json> SidecarProgram::lines() const {
  std::vector<Json> lines;
  std::istringstream text(read_file(scratch_->file("lines")));
  for (std::string line; std::getline(text, line);) {
    // The last line may still be in the making.
    if (auto json = Json::parse(line, nullptr, false); !json.is_discarded()) {
      lines.push_back(std::move(json));
    }
  }
  return lines;
}

std::size_t SidecarProgram::epochs() const {
  std::size_t count = 0;
  for (const Json& line : lines()) count += line.value("event", "") == "epoch" ? 1 : 0;
  return count;
}

std::size_t SidecarProgram::attachments() const {
  std::size_t count = 0;
  for (const Json& line : lines()) count += line.value("event", "") == "attached" ? 1 : 0;
  return count;
}

std::optional<Epoch> SidecarProgram::last_epoch() const {
  std::optional<Epoch> last;
  for (const Json& line : lines()) {
    if (line.value("event", "") == "epoch") last = Epoch{line.at("epoch").get<std::uint64_t>()};
  }
  return last;
}

std::optional<Json> SidecarProgram::summary() const {
  for (const Json& line : lines()) {
    if (line.value("event", "") == "summary") return line;
  }
  return std::nullopt;
}

Status SidecarProgram::wait_for_epochs(std::size_t count, io::Deadline deadline) {
  for (;;) {
    const bool running = process_->running();
    if (epochs() >= count) return {};
    if (!running) return fail(Errc::closed, "the sidecar ended: " + messages());
    if (io::Deadline::clock::now() >= deadline) {
      return fail(Errc::timed_out, fmt::format("{} of {} epochs: {}", epochs(), count, messages()));
    }
    ::poll(nullptr, 0, 10);
  }
}

Result<ExitStatus> SidecarProgram::stop() {
  VMSHADOW_TRY(process_->signal(SIGTERM));
  return process_->wait(io::deadline_after(kStopWithin));
}

// ---- restore

Result<std::unique_ptr<RestoredGuest>> RestoredGuest::restore(const RestoreConfig& config) {
  std::unique_ptr<RestoredGuest> guest(new RestoredGuest);
  // The recorded command line names the original's sockets; the restored QEMU connects to ours.
  if (config.original.has_console) {
    VMSHADOW_ASSIGN(guest->console_owned_, Console::listen(guest->directory_.file("console")));
  }
  if (config.original.has_witness) {
    VMSHADOW_ASSIGN(guest->witness_owned_, Console::listen(guest->directory_.file("witness")));
  }
  guest->witness_ = guest->witness_owned_.get();
  guest->console_ = guest->console_owned_ ? guest->console_owned_.get() : guest->witness_;

  std::vector<std::string> argv{
      program_path("shadow-replay"),
      "--store",
      config.store_directory,
      "restore",
      config.vm,
      "--epoch",
      config.epoch,
      "--set",
      fmt::format("{}={}", config.original.directory, guest->directory_.path()),
      "--run-dir",
      guest->directory_.path(),
      "--json"};
  if (!config.disks.empty()) argv.insert(argv.end(), {"--disks", config.disks});
  if (!config.keys.empty()) argv.insert(argv.end(), {"--keys", config.keys});
  for (const auto& setting : config.env) argv.insert(argv.end(), {"--env", setting});
  guest->timing_.asked = system_clock().monotonic();
  VMSHADOW_ASSIGN(const Ran ran, run_program(std::move(argv), kRestoreWithin));
  guest->timing_.replied = std::chrono::duration_cast<std::chrono::microseconds>(
      system_clock().monotonic() - guest->timing_.asked);
  if (!ran.status.success()) {
    return fail(Errc::io,
                fmt::format("shadow-replay ended with {}: {}", ran.status.text(), ran.err));
  }
  guest->report_ = std::make_unique<Json>(Json::parse(ran.out, nullptr, false));
  if (guest->report_->is_discarded()) return fail(Errc::protocol, "not JSON: " + ran.out);
  return guest;
}

// It runs on its own by design, so its end is ours to see to.
RestoredGuest::~RestoredGuest() { kill(); }

void RestoredGuest::kill() {
  if (!report_ || !report_->contains("pid")) return;
  ::kill((*report_)["pid"].get<pid_t>(), SIGKILL);
  report_->erase("pid");  // once: the number may soon be another process's
}

GuestPlaces RestoredGuest::places() const {
  return {directory_.path(), console_owned_ != nullptr, witness_owned_ != nullptr};
}

std::string RestoredGuest::messages() const {
  return read_file(report_->at("log").get<std::string>());
}

const Json& RestoredGuest::report() const { return *report_; }
Epoch RestoredGuest::epoch() const { return Epoch{report_->at("epoch").get<std::uint64_t>()}; }
std::string RestoredGuest::qmp_path() const { return report_->at("qmp").get<std::string>(); }

// ---- judgement

Result<WitnessVerdict> judge(const std::string& store_directory, const std::string& vm,
                             Console& primary, RestoredGuest& restored, std::size_t reports,
                             const std::string& keys) {
  VMSHADOW_TRY(restored.witness().wait_for_lines(reports, io::deadline_after(kReportsWithin)));
  std::shared_ptr<const crypt::KeySource> source;
  if (!keys.empty()) source = std::make_shared<crypt::KeyDirectory>(keys);
  VMSHADOW_ASSIGN(const auto reader, store::Reader::open(store_directory, source));
  VMSHADOW_ASSIGN(const auto image, reader->open(vm, restored.epoch()));
  VMSHADOW_ASSIGN(const WitnessControl control, find_witness_control(*image));
  return judge_restore(primary.lines(), control, restored.witness().lines());
}

}  // namespace vmshadow::test
