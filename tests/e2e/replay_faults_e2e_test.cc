// What a restore may meet: names that are not there, a damaged journal, a QEMU that does not fit.
#include <fcntl.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <optional>

#include "format/journal.h"
#include "format/record.h"
#include "support/fault_rig.h"
#include "support/prerequisite.h"

namespace vmshadow::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::HasSubstr;
namespace fs = std::filesystem;

Ran replay(const std::string& store, std::vector<std::string> args) {
  args.insert(args.begin(), {program_path("shadow-replay"), "--store", store});
  return must(run_program(std::move(args)));
}

void expect_replay_fails(const Ran& ran, const std::vector<std::string>& words) {
  EXPECT_EQ(ran.status.code, 1) << ran.out << ran.err;
  expect_sentence(ran.err, "shadow-replay", words);
}

/// A store with some epochs of "vm1", made once: none of these tests changes it.
class ReplayFaults : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    if (!guest_available({})) return;
    rig_ = std::make_unique<FaultRig>(std::vector<std::string>{"-device", "virtio-rng-pci,id=rng"});
    StoreProgram store = must(StoreProgram::start(rig_->store_directory()));
    SidecarProgram sidecar = rig_->protect(store.address(), 12);
    EXPECT_EQ(must(sidecar.stop()).text(), "exit code 0") << sidecar.messages();
    EXPECT_EQ(must(store.stop()).text(), "exit code 0");
    newest_ = *acknowledged_epochs(sidecar).rbegin();
  }
  static void TearDownTestSuite() { rig_.reset(); }
  void SetUp() override { VMSHADOW_REQUIRE(guest_available({})); }

  static std::string store() { return rig_->store_directory(); }
  /// The arguments that restore into a QEMU of our own, in `folder`.
  static std::vector<std::string> restore_args(const std::string& epoch, const TempDir& folder,
                                               std::vector<std::string> more = {}) {
    std::vector<std::string> args{
        "restore",   "vm1",         "--epoch",
        epoch,       "--set",       rig_->guest().directory().path() + "=" + folder.path(),
        "--run-dir", folder.path(), "--json"};
    args.insert(args.end(), more.begin(), more.end());
    return args;
  }

  static std::unique_ptr<FaultRig> rig_;
  static std::uint64_t newest_;
};
std::unique_ptr<FaultRig> ReplayFaults::rig_;
std::uint64_t ReplayFaults::newest_ = 0;

TEST_F(ReplayFaults, UnknownNamesAreRefused) {
  expect_replay_fails(replay(store(), {"restore", "vm9"}),
                      {"no VM 'vm9' in the store, which holds: vm1"});
  expect_replay_fails(replay(store(), {"list", "vm9"}), {"no VM 'vm9' in the store"});
  expect_replay_fails(replay(store(), {"verify", "vm9"}), {"no VM 'vm9' in the store"});
  // Both an epoch far away and the one that would have come next, never committed.
  for (const std::uint64_t epoch : {newest_ + 1, std::uint64_t{999999}}) {
    expect_replay_fails(replay(store(), {"restore", "vm1", "--epoch", std::to_string(epoch)}),
                        {"VM 'vm1' has no committed epoch " + std::to_string(epoch),
                         "between 0 and " + std::to_string(newest_)});
  }
  TempDir folder;
  for (const char* command : {"list", "verify", "restore"}) {
    expect_replay_fails(replay(folder.file("none"), {command}),
                        {"there is no store '" + folder.file("none") + "'",
                         "give the directory that vmshadow-store writes to"});
  }
  std::ofstream(folder.file("file")) << "x";
  expect_replay_fails(replay(folder.file("file"), {"list"}), {"is not a directory"});
  expect_replay_fails(replay(folder.path(), {"list"}), {"is not a vmshadow store"});
}

struct PlacedRecord {
  std::string file;
  std::uint64_t offset{};
  std::uint64_t body_bytes{};
};

/// The first page group of `epoch` in the journal; nullopt if it has none: a guest that got no
/// processor wrote nothing.
std::optional<PlacedRecord> find_page_group(const std::string& store_directory,
                                            std::uint64_t epoch) {
  for (const auto& entry : fs::directory_iterator(store_directory + "/segments")) {
    std::ifstream file(entry.path(), std::ios::binary);
    const std::string bytes(std::istreambuf_iterator<char>(file), {});
    const ByteSpan journal = std::as_bytes(std::span(bytes));
    std::uint64_t at = format::kSegmentHeadBytes;
    while (at + format::kRecordPrefixBytes <= journal.size()) {
      const auto prefix = format::decode_prefix(journal.subspan(at));
      if (!prefix) break;
      if (prefix->head.type == format::RecordType::page_group &&
          prefix->head.epoch.value == epoch) {
        return PlacedRecord{entry.path().filename(), at, prefix->body_bytes};
      }
      const std::uint64_t end = at + format::kRecordPrefixBytes + prefix->body_bytes;
      at = (end + format::kRecordAlignment - 1) / format::kRecordAlignment *
           format::kRecordAlignment;
    }
  }
  return std::nullopt;
}

void flip_byte(const std::string& path, std::uint64_t offset) {
  std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
  file.seekg(static_cast<std::streamoff>(offset));
  const char byte = static_cast<char>(file.get() ^ 0x10);
  file.seekp(static_cast<std::streamoff>(offset));
  file.put(byte);
}

// A rotten page group costs the epochs that need it: its own, and later ones until its pages are
// written again. All others restore, exactly.
TEST_F(ReplayFaults, DamagedPageGroupCostsOnlyTheEpochsThatNeedIt) {
  TempDir folder;
  const std::string copy = folder.file("store");
  fs::copy(store(), copy, fs::copy_options::recursive);
  std::uint64_t victim = newest_ - 2;
  auto found = find_page_group(copy, victim);
  while (!found && victim > 1) found = find_page_group(copy, --victim);
  ASSERT_TRUE(found);
  const PlacedRecord group = *found;
  flip_byte(copy + "/segments/" + group.file,
            group.offset + format::kRecordPrefixBytes + group.body_bytes / 2);
  const std::vector<std::string> words{
      "segment " + group.file, "offset " + std::to_string(group.offset),
      "epoch " + std::to_string(victim) + " of VM 'vm1'", "checksum"};
  expect_replay_fails(replay(copy, {"verify", "--deep"}), words);
  // Who reads all of an epoch that needs it is told, and gets nothing.
  const auto read_all = [&](std::uint64_t epoch) {
    const std::string out = folder.file("out-" + std::to_string(epoch));
    const Ran ran = replay(
        copy, {"export", "vm1", "--epoch", std::to_string(epoch), "--format", "raw", "--out", out});
    EXPECT_EQ(fs::exists(out), ran.status.success());
    return ran;
  };
  expect_replay_fails(read_all(victim), words);
  const Ran before_it = read_all(victim - 1);
  EXPECT_TRUE(before_it.status.success()) << before_it.err;

  const auto before =
      must(RestoredGuest::restore(copy, "vm1", std::to_string(victim - 1), rig_->guest()));
  const WitnessVerdict verdict = must(judge(copy, "vm1", rig_->guest().witness(), *before, 10));
  EXPECT_TRUE(verdict.continues_exactly()) << verdict.text();
}

TEST_F(ReplayFaults, QemuOfAnotherMemorySizeIsRefused) {
  GuestConfig other;
  other.incoming = true;
  other.memory_mib = 96;
  const auto waiting = must(QemuGuest::start(other));
  expect_replay_fails(replay(store(), {"restore", "vm1", "--qmp", waiting->qmp_path()}),
                      {fmt::format("QEMU has {} bytes of RAM", guest_memory_kib(other) * 1024),
                       fmt::format("the recorded VM had {}", guest_memory_kib({}) * 1024),
                       fmt::format("start it with -m {}B", guest_memory_kib({}) * 1024)});
  EXPECT_TRUE(waiting->process().running());
}

TEST_F(ReplayFaults, QemuOfAnotherMachineTypeIsRefused) {
  GuestConfig other;
  other.incoming = true;
  other.extra_args = {"-machine", "q35"};
  const auto waiting = must(QemuGuest::start(other));
  expect_replay_fails(replay(store(), {"restore", "vm1", "--qmp", waiting->qmp_path()}),
                      {"QEMU runs machine type 'pc-q35-", "the recorded VM is a 'pc-i440fx-",
                       "start it with -machine pc-i440fx-"});
  EXPECT_TRUE(waiting->process().running());
}

TEST_F(ReplayFaults, QemuThatDoesNotWaitIsLeftAlone) {
  FaultRig running;
  expect_replay_fails(replay(store(), {"restore", "vm1", "--qmp", running.guest().qmp_path()}),
                      {"QEMU does not wait for a state, it is 'running'", "-incoming defer"});
  running.expect_runs_on();
}

TEST_F(ReplayFaults, QemuWithOtherDevicesIsQuoted) {
  TempDir folder;
  const auto witness = must(Console::listen(folder.file("witness")));
  expect_replay_fails(replay(store(), restore_args("latest", folder,
                                                   {"--set", "virtio-rng-pci=virtio-serial-pci"})),
                      {"while it was given the state",
                       "it said: ", "qemu-system-x86_64: ", "virtio", folder.path()});
}

TEST_F(ReplayFaults, QemuThatDoesNotStartIsQuoted) {
  TempDir folder;
  const auto witness = must(Console::listen(folder.file("witness")));
  expect_replay_fails(
      replay(store(),
             restore_args("latest", folder, {"--extra-arg=-device", "--extra-arg=no-such-thing"})),
      {"as it started", "it said: ", "no-such-thing"});
  expect_replay_fails(replay(store(), restore_args("latest", folder, {"--qemu", "/nowhere/qemu"})),
                      {"there is no QEMU executable '/nowhere/qemu' here", "--qemu"});
}

}  // namespace
}  // namespace vmshadow::test
