// Restores a state captured from a real QEMU into a second one, by each way there is, and compares
// the guest's RAM byte for byte. The guest is SeaBIOS under TCG: no image, no privileges.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <thread>

#include "delta/epoch_encoder.h"
#include "io/append_file.h"
#include "io/socket.h"
#include "qmp/commands.h"
#include "replay/restorer.h"
#include "store/store.h"
#include "support/memory_epoch_image.h"
#include "support/migration_stream_parser.h"

namespace vmshadow::replay {
namespace {

using ::testing::HasSubstr;
using testing::MemoryEpochImage;
using Words = std::vector<std::string>;
namespace fs = std::filesystem;

constexpr const char* kQemu = "/usr/bin/qemu-system-x86_64";
// No multiple of 256 KiB: before 9.0, QEMU's TCG loses dirty pages of such a block in a migration.
constexpr const char* kMemory = "16376k";
constexpr std::uint64_t kRamBytes = 16376 * 1024;
constexpr std::uint64_t kLowRamEnd = 0xa0000;
constexpr std::uint64_t kHighRamStart = 0x100000;
constexpr std::chrono::seconds kPatience{60};

Words machine_arguments(const char* memory = kMemory) {
  return {kQemu, "-nodefaults", "-display", "none", "-accel",
          "tcg", "-machine",    "pc",       "-m",   memory};
}

class ReplayE2eTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::access(kQemu, X_OK) != 0) {
      const char* const required = std::getenv("REQUIRE_E2E");
      ASSERT_FALSE(required != nullptr && std::string(required) == "1")
          << kQemu << " is missing, and REQUIRE_E2E=1 says it must not be";
      GTEST_SKIP() << kQemu << " is missing: install qemu-system-x86";
    }
    std::string pattern = (fs::temp_directory_path() / "replay-e2e-XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
  }
  void TearDown() override {
    processes_.clear();
    for (const pid_t pid : released_) ::kill(pid, SIGKILL);
    if (!folder_.empty()) fs::remove_all(folder_);
  }

  std::string path(const std::string& name) const { return (folder_ / name).string(); }

  /// Starts a QEMU that is killed at the test's end; its monitor is at path(name + ".qmp").
  QemuProcess& start(const std::string& name, Words arguments) {
    QemuCommand command;
    command.argv = std::move(arguments);
    command.argv.insert(command.argv.end(),
                        {"-qmp", "unix:" + path(name + ".qmp") + ",server=on,wait=off"});
    auto process = QemuProcess::start(command, path(name + ".log"));
    if (!process) throw std::runtime_error(process.error().message);
    processes_.push_back(std::make_unique<QemuProcess>(*std::move(process)));
    return *processes_.back();
  }
  std::unique_ptr<qmp::Session> monitor(const std::string& name) {
    const auto deadline = std::chrono::steady_clock::now() + kPatience;
    for (;;) {
      auto session = qmp::Session::connect(path(name + ".qmp"));
      if (session) return *std::move(session);
      if (std::chrono::steady_clock::now() > deadline) {
        throw std::runtime_error(session.error().message);
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
  }

  /// The guest's RAM as QEMU itself sees it, without the hole below 1 MiB.
  std::string ram_of(qmp::Session& session) {
    const std::string low = path("low.bin");
    const std::string high = path("high.bin");
    EXPECT_TRUE(qmp::pmemsave(session, 0, kLowRamEnd, low));
    EXPECT_TRUE(qmp::pmemsave(session, kHighRamStart, kRamBytes - kHighRamStart, high));
    std::string ram;
    for (const std::string& file : {low, high}) {
      std::ifstream in(file, std::ios::binary);
      ram.append(std::istreambuf_iterator<char>(in), {});
    }
    EXPECT_EQ(ram.size(), kRamBytes - (kHighRamStart - kLowRamEnd));
    return ram;
  }

  static std::vector<std::byte> read_to_end(int fd) {
    std::vector<std::byte> stream;
    std::vector<std::byte> piece(1 << 16);
    for (;;) {
      const auto got = io::read_some(fd, piece, io::deadline_after(kPatience));
      if (!got) throw std::runtime_error(got.error().message);
      if (*got == 0) return stream;
      stream.insert(stream.end(), piece.begin(), piece.begin() + static_cast<std::ptrdiff_t>(*got));
    }
  }

  /// Runs a guest for a moment and takes its state by a plain migration. The source stays stopped,
  /// so that source_ram_ is what the image must restore to.
  void capture(bool paused) {
    start("source", machine_arguments());
    const auto session = monitor("source");
    // Any moment will do: the comparison is with the same guest. A second is past the firmware's
    // set-up, so that RAM holds something.
    std::this_thread::sleep_for(std::chrono::seconds(1));
    if (paused) {
      ASSERT_TRUE(qmp::stop(*session));
    }
    auto ends = io::socket_pair();
    ASSERT_TRUE(ends) << ends.error().message;
    const auto passed = qmp::getfd(*session, "out", ends->second.get());
    ASSERT_TRUE(passed) << passed.error().message;
    ends->second.reset();
    ASSERT_TRUE(qmp::migrate(*session, "fd:out"));
    const auto stream = read_to_end(ends->first.get());
    const auto parsed = testing::MigrationStreamParser(stream).parse();

    const auto facts = qmp::query_machine(*session);
    ASSERT_TRUE(facts) << facts.error().message;
    nlohmann::json json{{"qemu_binary", kQemu},
                        {"machine_type", facts->machine_type},
                        {"accelerator", "tcg"},
                        {"ram_bytes", facts->ram_bytes},
                        {"cwd", "/"}};
    Words argv = machine_arguments();
    argv.insert(argv.end(), {"-qmp", "unix:" + path("source.qmp") + ",server=on,wait=off"});
    json["argv"] = argv;
    image_.machine_.json = json.dump();
    image_.machine_.configuration = parsed.configuration;
    image_.machine_.layout = parsed.layout;
    image_.device_state_ = parsed.device_state;
    for (const auto& [place, bytes] : parsed.pages) {
      const auto& blocks = parsed.layout.blocks;
      const auto block = static_cast<std::uint16_t>(
          std::find_if(blocks.begin(), blocks.end(),
                       [&](const RamBlock& b) { return b.name == place.first; }) -
          blocks.begin());
      auto& page = image_.pages_[{BlockIndex{block}, PageNumber{place.second / kPageBytes}}];
      std::memcpy(page.data(), bytes.data(), kPageBytes);
    }
    source_ram_ = ram_of(*session);
    ASSERT_NE(source_ram_, std::string(source_ram_.size(), '\0'));
  }

  LaunchTarget launch_target(const CommandChanges& changes = {}) {
    const auto record = parse_machine_record(image_.machine_.json);
    EXPECT_TRUE(record) << record.error().message;
    const auto command = command_for_restore(*record, changes, path("launched.qmp"));
    EXPECT_TRUE(command) << command.error().message;
    return LaunchTarget{*command, path("launched.qmp"), path("launched.log")};
  }
  Result<RestoreReport> restore_to(const RestoreTarget& target) {
    RestoreOptions options;
    options.stall_timeout = kPatience;
    auto report = restore(image_, target, options, system_clock());
    if (report) {
      const auto ms = [](auto phase) { return static_cast<double>(phase.count()) / 1000; };
      std::printf("launch %.1f ms, connect %.1f ms, send %.1f ms (%.1f MB), load %.1f ms\n",
                  ms(report->phases.launch), ms(report->phases.connect), ms(report->phases.send),
                  static_cast<double>(report->stream.bytes) / 1e6, ms(report->phases.load));
      if (report->pid) released_.push_back(*report->pid);
    }
    return report;
  }

  /// Puts image_ into a store at path("store") as two epochs of VM "web1": the first with other
  /// bytes in every held page, the second with image_'s.
  void store_image() {
    auto opened = store::Store::open(path("store"), system_clock(), [] {
      return io::make_file_system(io::FileBackend::automatic);
    });
    ASSERT_TRUE(opened) << opened.error().message;
    auto session = (*opened)->open_session("web1", "a test");
    ASSERT_TRUE(session) << session.error().message;
    delta::EpochEncoder encoder(PageHasher::create().value(), vm_id("web1"),
                                (*session)->generation());
    const MemoryEpochImage::Page other = [] {
      MemoryEpochImage::Page page;
      page.fill(std::byte{0xee});
      return page;
    }();
    for (const bool full : {true, false}) {
      std::vector<std::byte> records;
      const Epoch epoch = (*session)->next_epoch();
      encoder.begin({epoch, full, full ? &image_.machine_ : nullptr}, records);
      PageBatch batch;
      for (const auto& [place, page] : image_.pages_) {
        batch.pages.push_back({place.first, place.second, full ? other.data() : page.data()});
      }
      encoder.add(batch, records);
      EpochEnd end;
      end.epoch = epoch;
      end.cut_wall = system_clock().wall();
      end.device_state = image_.device_state_;
      static_cast<void>(encoder.end(end, records));
      append_and_commit(**session, records);
    }
  }
  static void append_and_commit(EpochSession& session, ByteSpan records) {
    while (!records.empty()) {
      const auto prefix = format::decode_prefix(records);
      ASSERT_TRUE(prefix) << prefix.error().message;
      const ByteSpan record = records.first(format::kRecordPrefixBytes + prefix->body_bytes);
      records = records.subspan(record.size());
      if (records.empty()) {
        const auto receipt = session.commit(record);
        ASSERT_TRUE(receipt) << receipt.error().message;
      } else {
        const auto appended = session.append(record);
        ASSERT_TRUE(appended) << appended.error().message;
      }
    }
  }

  struct Outcome {
    int exit_code;
    std::string out;  ///< stdout and stderr
  };
  /// Runs shadow-replay on path("store").
  Outcome shadow_replay(const std::string& arguments) const {
    const std::string command = std::string(VMSHADOW_SHADOW_REPLAY) + " --store " + path("store") +
                                " " + arguments + " 2>&1";
    FILE* const pipe = ::popen(command.c_str(), "r");
    Outcome outcome{-1, {}};
    if (pipe == nullptr) return outcome;
    std::array<char, 4096> piece{};
    while (const std::size_t got = std::fread(piece.data(), 1, piece.size(), pipe)) {
      outcome.out.append(piece.data(), got);
    }
    const int status = ::pclose(pipe);
    outcome.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    return outcome;
  }

  fs::path folder_;
  std::vector<std::unique_ptr<QemuProcess>> processes_;
  std::vector<pid_t> released_;
  MemoryEpochImage image_;
  std::string source_ram_;
};

TEST_F(ReplayE2eTest, AWaitingQemuGetsExactlyTheCapturedRamAndRuns) {
  capture(/*paused=*/false);
  auto arguments = machine_arguments();
  arguments.insert(arguments.end(), {"-S", "-incoming", "defer"});
  start("target", arguments);
  monitor("target");  // it is up
  const auto report = restore_to(MonitorTarget{path("target.qmp")});
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_EQ(report->run_state, "paused");
  EXPECT_EQ(report->pid, std::nullopt);
  EXPECT_EQ(report->stream.pages, image_.machine_.layout.total_bytes() / kPageBytes);
  const auto session = monitor("target");
  EXPECT_TRUE(ram_of(*session) == source_ram_);
  ASSERT_TRUE(qmp::cont(*session));
  EXPECT_EQ(qmp::query_status(*session)->text, "running");
}

TEST_F(ReplayE2eTest, AQemuStartedFromItsDescriptionRuns) {
  capture(/*paused=*/false);
  const auto report = restore_to(launch_target());
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_EQ(report->run_state, "running");
  ASSERT_TRUE(report->pid);
  const auto session = monitor("launched");
  EXPECT_EQ(qmp::query_status(*session)->text, "running");
  EXPECT_EQ(*session->peer_pid(), *report->pid);
}

TEST_F(ReplayE2eTest, AGuestCapturedWhilePausedStaysPausedWithItsRam) {
  capture(/*paused=*/true);
  const auto report = restore_to(launch_target());
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_EQ(report->run_state, "paused");
  EXPECT_TRUE(ram_of(*monitor("launched")) == source_ram_);
}

TEST_F(ReplayE2eTest, AQemuThatListensForTheStreamTakesIt) {
  capture(/*paused=*/false);
  auto arguments = machine_arguments();
  arguments.insert(arguments.end(), {"-S", "-incoming", "unix:" + path("in.sock")});
  start("target", arguments);
  const auto session = monitor("target");
  const auto report = restore_to(IncomingTarget{"unix:" + path("in.sock")});
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_EQ(report->run_state, "");
  EXPECT_EQ(qmp::query_status(*session)->text, "paused");
  EXPECT_TRUE(ram_of(*session) == source_ram_);
}

TEST_F(ReplayE2eTest, AnotherRamSizeIsRefusedBeforeAByteIsSent) {
  capture(/*paused=*/true);
  CommandChanges changes;
  changes.replacements = {{kMemory, "32768k"}};
  const auto report = restore_to(launch_target(changes));
  ASSERT_FALSE(report);
  EXPECT_EQ(report.error().code, Errc::invalid_argument);
  EXPECT_THAT(report.error().message, HasSubstr("QEMU has 33554432 bytes of RAM"));
  EXPECT_THAT(report.error().message, HasSubstr("-m 16769024B"));
}

TEST_F(ReplayE2eTest, AnotherMachineTypeIsRefusedBeforeAByteIsSent) {
  capture(/*paused=*/true);
  CommandChanges changes;
  changes.replacements = {{"pc", "q35"}};
  const auto report = restore_to(launch_target(changes));
  ASSERT_FALSE(report);
  EXPECT_EQ(report.error().code, Errc::invalid_argument);
  EXPECT_THAT(report.error().message, HasSubstr("QEMU runs machine type 'pc-q35-"));
  EXPECT_THAT(report.error().message, HasSubstr("'pc-i440fx-"));
}

TEST_F(ReplayE2eTest, AQemuThatCannotLoadTheStateIsQuoted) {
  capture(/*paused=*/true);
  CommandChanges changes;
  changes.extra_args = {"-device", "no-such-device"};
  const auto unknown = restore_to(launch_target(changes));
  ASSERT_FALSE(unknown);
  EXPECT_THAT(unknown.error().message, HasSubstr("QEMU exited with status 1 as it started"));
  EXPECT_THAT(unknown.error().message, HasSubstr("no-such-device"));

  // A device section that QEMU does not know.
  image_.device_state_.assign(40, std::byte{0x04});
  image_.device_state_.back() = std::byte{0};
  const auto damaged = restore_to(launch_target());
  ASSERT_FALSE(damaged);
  EXPECT_THAT(damaged.error().message, HasSubstr("QEMU exited with status 1 while it was given"));
  EXPECT_THAT(damaged.error().message, HasSubstr("it said: "));
  EXPECT_THAT(damaged.error().message, HasSubstr("qemu-system-x86_64: "));
}

TEST_F(ReplayE2eTest, AQemuThatAlreadyRunsIsLeftAlone) {
  capture(/*paused=*/true);
  start("busy", machine_arguments());
  const auto session_up = [&] { return monitor("busy"); };
  EXPECT_EQ(qmp::query_status(*session_up())->text, "running");
  const auto report = restore_to(MonitorTarget{path("busy.qmp")});
  ASSERT_FALSE(report);
  EXPECT_EQ(report.error().code, Errc::invalid_argument);
  EXPECT_THAT(report.error().message, HasSubstr("it is 'running': start it with -incoming defer"));
  EXPECT_EQ(qmp::query_status(*session_up())->text, "running");
}

TEST_F(ReplayE2eTest, WhatIsMissingIsNamed) {
  QemuCommand command;
  command.argv = {"/nowhere/qemu"};
  const auto no_binary = QemuProcess::start(command, path("x.log"));
  ASSERT_FALSE(no_binary);
  EXPECT_EQ(no_binary.error().code, Errc::not_found);
  EXPECT_THAT(no_binary.error().message, HasSubstr("no QEMU executable '/nowhere/qemu'"));
  EXPECT_THAT(no_binary.error().message, HasSubstr("--qemu"));

  command.argv = {kQemu};
  command.cwd = path("no-such-folder");
  const auto no_folder = QemuProcess::start(command, path("x.log"));
  ASSERT_FALSE(no_folder);
  EXPECT_EQ(no_folder.error().code, Errc::not_found);
  EXPECT_THAT(no_folder.error().message, HasSubstr("no-such-folder"));

  const auto no_listener = restore_to(IncomingTarget{"unix:" + path("nobody.sock")});
  ASSERT_FALSE(no_listener);
  EXPECT_EQ(no_listener.error().code, Errc::not_found);
  EXPECT_THAT(no_listener.error().message, HasSubstr("nobody.sock"));
  const auto no_address = restore_to(IncomingTarget{"exec:cat"});
  ASSERT_FALSE(no_address);
  EXPECT_EQ(no_address.error().code, Errc::invalid_argument);
  EXPECT_THAT(no_address.error().message, HasSubstr("unix:PATH or tcp:HOST:PORT"));
}

TEST_F(ReplayE2eTest, FromTheStoreByTheProgramAndBackToTheSameRam) {
  capture(/*paused=*/true);
  store_image();

  const auto listed = shadow_replay("--json list web1");
  ASSERT_EQ(listed.exit_code, 0) << listed.out;
  const auto list = nlohmann::json::parse(listed.out);
  ASSERT_EQ(list["vms"][0]["epochs"].size(), 2u);
  EXPECT_EQ(list["vms"][0]["epochs"][0]["full"], true);
  EXPECT_EQ(list["vms"][0]["epochs"][1]["full"], false);
  EXPECT_THAT(shadow_replay("list").out, HasSubstr("web1"));
  const auto verified = shadow_replay("verify --deep");
  EXPECT_EQ(verified.exit_code, 0) << verified.out;
  EXPECT_THAT(verified.out, HasSubstr("VM 'web1': 2 epochs can be restored"));

  const auto dry = shadow_replay("restore --dry-run --extra-arg=-snapshot");
  EXPECT_EQ(dry.exit_code, 0) << dry.out;
  EXPECT_THAT(dry.out, HasSubstr("-snapshot -qmp unix:"));
  EXPECT_THAT(dry.out, ::testing::Not(HasSubstr("source.qmp")));

  const auto restored = shadow_replay("--json restore web1 --run-dir " + folder_.string());
  ASSERT_EQ(restored.exit_code, 0) << restored.out;
  const auto report = nlohmann::json::parse(restored.out);
  released_.push_back(report["pid"].get<pid_t>());
  EXPECT_EQ(report["epoch"], list["vms"][0]["epochs"][1]["epoch"]);
  EXPECT_EQ(report["run_state"], "paused");
  EXPECT_EQ(report["newer_epochs"], 0);
  const auto session = qmp::Session::connect(report["qmp"].get<std::string>());
  ASSERT_TRUE(session) << session.error().message;
  EXPECT_TRUE(ram_of(**session) == source_ram_);
}

std::string bytes_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

TEST_F(ReplayE2eTest, AQemuTakesTheExportedMigrationFile) {
  capture(/*paused=*/true);
  store_image();
  const auto exported = shadow_replay("export web1 --format migration --out " + path("web1.qemu"));
  ASSERT_EQ(exported.exit_code, 0) << exported.out;
  auto arguments = machine_arguments();
  arguments.insert(arguments.end(), {"-S", "-incoming", "exec:cat " + path("web1.qemu")});
  start("target", arguments);
  const auto session = monitor("target");
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  while (qmp::query_status(*session)->text == "inmigrate") {
    ASSERT_LT(std::chrono::steady_clock::now(), deadline);
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  EXPECT_EQ(qmp::query_status(*session)->text, "paused");
  EXPECT_TRUE(ram_of(*session) == source_ram_);
}

TEST_F(ReplayE2eTest, GdbReadsTheExportedCoreAsTheGuestsRam) {
  if (::access("/usr/bin/gdb", X_OK) != 0) {
    const char* const required = std::getenv("REQUIRE_E2E");
    ASSERT_FALSE(required != nullptr && std::string(required) == "1") << "gdb is missing";
    GTEST_SKIP() << "gdb is missing: install it";
  }
  capture(/*paused=*/true);
  store_image();
  const auto exported = shadow_replay("export web1 --format elf --out " + path("web1.core"));
  ASSERT_EQ(exported.exit_code, 0) << exported.out;
  // Guest-physical addresses, as QEMU's own pmemsave takes them.
  const std::string command = "gdb -nx -batch -core " + path("web1.core") +
                              " -ex 'dump binary memory " + path("low") + " " + std::to_string(0) +
                              " " + std::to_string(kLowRamEnd) + "' -ex 'dump binary memory " +
                              path("high") + " " + std::to_string(kHighRamStart) + " " +
                              std::to_string(kRamBytes) + "' > " + path("gdb.out") + " 2>&1";
  ASSERT_EQ(std::system(command.c_str()), 0) << bytes_of(path("gdb.out"));
  EXPECT_TRUE(bytes_of(path("low")) + bytes_of(path("high")) == source_ram_)
      << bytes_of(path("gdb.out"));
}

TEST_F(ReplayE2eTest, TheExportedRawRamIsTheGuests) {
  capture(/*paused=*/true);
  store_image();
  const auto exported = shadow_replay("export web1 --format raw --out " + path("web1.raw"));
  ASSERT_EQ(exported.exit_code, 0) << exported.out;
  const std::string ram = bytes_of(path("web1.raw/pc.ram.ram"));
  ASSERT_EQ(ram.size(), kRamBytes);
  EXPECT_TRUE(ram.substr(0, kLowRamEnd) + ram.substr(kHighRamStart) == source_ram_);
  const auto shown = shadow_replay("--json show web1");
  ASSERT_EQ(shown.exit_code, 0) << shown.out;
  const auto machine = nlohmann::json::parse(shown.out)["machine"];
  EXPECT_THAT(machine["machine_type"].get<std::string>(), HasSubstr("pc-i440fx-"));
  EXPECT_EQ(machine["ram_bytes"], kRamBytes);
}

TEST_F(ReplayE2eTest, TheProgramsRefusalsAreOneSentence) {
  capture(/*paused=*/true);
  store_image();
  struct Case {
    const char* arguments;
    int exit_code;
    const char* words;
  };
  const Case cases[] = {
      {"restore nobody", 1, "no VM 'nobody' in the store, which holds: web1"},
      {"restore web1 --epoch 77", 1, "VM 'web1' has no committed epoch 77"},
      {"restore web1 --epoch soon", 2, "--epoch: 'soon' is neither a number nor 'latest'"},
      {"restore web1 --set nothing", 2, "'nothing' is not of the form OLD=NEW"},
      {"restore web1 --set /absent=/x", 1, "'/absent' occurs in no argument"},
      {"restore web1 --env =x", 2, "--env"},
      {"restore web1 --qmp /a --incoming unix:/b", 2, "excludes"},
      {"restore web1 --qmp /a --dry-run", 2, "excludes"},
      {"restore web1 --incoming unix:/nowhere/in.sock", 1, "/nowhere/in.sock"},
      {"restore web1 --qemu /nowhere/qemu --run-dir /tmp", 1, "no QEMU executable '/nowhere/qemu'"},
      {"frobnicate", 2, "--help"},
      {"", 2, "subcommand"},
  };
  for (const Case& c : cases) {
    const auto outcome = shadow_replay(c.arguments);
    EXPECT_EQ(outcome.exit_code, c.exit_code) << c.arguments << ": " << outcome.out;
    EXPECT_TRUE(outcome.out.starts_with("shadow-replay: ")) << c.arguments << ": " << outcome.out;
    EXPECT_THAT(outcome.out, HasSubstr(c.words)) << c.arguments;
    EXPECT_EQ(std::count(outcome.out.begin(), outcome.out.end(), '\n'), 1) << outcome.out;
  }
}

}  // namespace
}  // namespace vmshadow::replay
