// Disks, cut at the same instant as RAM: real guests that write to real images, and a judge who
// knows from each epoch's RAM what its disks must hold.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <poll.h>
#include <signal.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <optional>
#include <random>

#include "qmp/commands.h"
#include "store/reader.h"
#include "support/disk_oracle.h"
#include "support/fault_rig.h"
#include "support/prerequisite.h"
#include "support/thoroughness.h"

namespace vmshadow::test {
namespace {

using Json = nlohmann::json;
using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr seconds kBootWithin{120};

/// A sparse raw image.
std::string make_image(const TempDir& folder, const std::string& name, std::uint64_t bytes) {
  std::string path = folder.file(name);
  std::ofstream(path, std::ios::binary).close();
  std::filesystem::resize_file(path, bytes);
  return path;
}

void add(std::vector<std::string>& argv, const std::vector<std::string>& more) {
  argv.insert(argv.end(), more.begin(), more.end());
}

/// Judges each epoch of "vm1"; how many records RAM was told of in the newest one.
std::uint64_t expect_all_exact(const std::string& store_directory) {
  const auto reader = must(store::Reader::open(store_directory));
  std::uint64_t newest = 0;
  for (const EpochInfo& info : must(reader->vm("vm1")).epochs) {
    const auto image = must(reader->open("vm1", info.epoch));
    const DiskVerdict verdict = must(judge_disks(*image));
    EXPECT_TRUE(verdict.is_exact())
        << "epoch " << info.epoch.value << ": " << verdict.missing << " missing, " << verdict.future
        << " future, " << verdict.torn << " torn; " << verdict.first;
    newest = verdict.acknowledged;
  }
  return newest;
}

struct DiskCase {
  const char* name;
  bool iothreads;
};

class Disks : public testing::TestWithParam<DiskCase> {};

TEST_P(Disks, EachEpochHoldsWhatItsRamBelievesIn) {
  TempDir folder;
  GuestConfig config;
  config.kind = GuestKind::linux_kernel;
  config.witness = {"arena_mib=4", "pages_per_s=200", "disks=2", "disk_slots=96",
                    "disk_writes_per_s=400"};
  const std::string first = make_image(folder, "first.img", (64 << 20) + 512);
  config.extra_args = {"-drive", "file=" + first + ",format=raw,if=none,id=d0"};
  const std::string second = folder.file("second.qcow2");
  must(run_program({"qemu-img", "create", "-q", "-f", "qcow2", second, "32M"}).map([](Ran) {}));
  if (GetParam().iothreads) {
    add(config.extra_args,
        {"-object", "iothread,id=io1", "-device", "virtio-blk-pci,drive=d0,id=first,iothread=io1",
         "-drive", "file=" + second + ",format=qcow2,if=none,id=d1,cache=none", "-device",
         "virtio-blk-pci,drive=d1,id=second,iothread=io1"});
  } else {
    add(config.extra_args, {"-device", "virtio-blk-pci,drive=d0,id=first", "-drive",
                            "file=" + second + ",format=qcow2,if=virtio"});
  }
  VMSHADOW_REQUIRE(guest_available(config));
  const auto guest = must(QemuGuest::start(config));
  must(guest->wait_for_reports(20, io::deadline_after(kBootWithin)));

  StoreProgram store = must(StoreProgram::start(folder.file("store")));
  SidecarConfig sidecar_config;
  sidecar_config.qmp_path = guest->qmp_path();
  sidecar_config.store = store.address();
  sidecar_config.interval = milliseconds(100);
  SidecarProgram sidecar = must(SidecarProgram::start(sidecar_config));
  must(sidecar.wait_for_epochs(30, io::deadline_after(kFaultPatience)));
  EXPECT_EQ(must(sidecar.stop()).text(), "exit code 0") << sidecar.messages() << guest->messages();
  std::size_t with_disks = 0;
  for (const Json& line : sidecar.lines()) {
    if (line.value("event", "") == "epoch" && line.at("disk_pages") > 0) ++with_disks;
  }
  EXPECT_GE(with_disks, 20U);

  const auto observer = must(qmp::Session::connect(guest->observer_qmp_path()));
  EXPECT_TRUE(must(qmp::query_block_jobs(*observer)).empty());
  EXPECT_GE(expect_all_exact(store.directory()), 100U);
  const auto reports = must(guest->reports());
  EXPECT_EQ(reports.back().bad_pages, 0U);

  // The guest itself reads each slot before it writes to it again.
  guest->kill();
  const auto restored = must(RestoredGuest::restore({store.directory(),
                                                     "vm1",
                                                     "latest",
                                                     guest->places(),
                                                     guest->env(),
                                                     {},
                                                     folder.file("disks")}));
  const WitnessVerdict verdict =
      must(judge(store.directory(), "vm1", guest->witness(), *restored, 200));
  EXPECT_TRUE(verdict.continues_exactly()) << verdict.text() << restored->messages();
  fmt::print("{} of {} epochs had pages of disks\n", with_disks, sidecar.epochs());
}

INSTANTIATE_TEST_SUITE_P(Guests, Disks,
                         testing::Values(DiskCase{"Plain", false}, DiskCase{"IoThreads", true}),
                         [](const auto& which) { return std::string(which.param.name); });

// ---- faults

/// A Linux guest with a witness's disk and one for its shell, and a store.
class DiskFaults : public testing::Test {
 protected:
  void boot(std::uint64_t writes_per_s = 300) {
    GuestConfig config;
    config.kind = GuestKind::linux_kernel;
    config.witness = {"arena_mib=4", "pages_per_s=200", "disks=1", "disk_slots=2048",
                      fmt::format("disk_writes_per_s={}", writes_per_s)};
    const std::string first = make_image(folder_, "first.img", 96 << 20);
    const std::string second = make_image(folder_, "second.img", 256 << 20);
    fill(second);
    config.extra_args = {
        "-blockdev", "driver=file,node-name=file0,cache.direct=on,filename=" + first,
        "-blockdev", "driver=raw,node-name=disk0,file=file0",
        "-device",   "virtio-blk-pci,drive=disk0,id=first",
        "-blockdev", "driver=file,node-name=file1,cache.direct=on,filename=" + second,
        "-blockdev", "driver=raw,node-name=disk1,file=file1",
        "-device",   "virtio-blk-pci,drive=disk1,id=second"};
    VMSHADOW_REQUIRE(guest_available(config));
    guest_ = must(QemuGuest::start(config));
    must(guest_->wait_for_shell(io::deadline_after(kBootWithin)));
    must(guest_->wait_for_reports(10, io::deadline_after(kBootWithin)));
    store_.emplace(must(StoreProgram::start(folder_.file("store"))));
    const auto monitor = observer();
    must(monitor
             ->execute("block-latency-histogram-set",
                       {{"id", "/machine/peripheral/first/virtio-backend"},
                        {"boundaries-write", kLatencies}})
             .map([](const Json&) {}));
  }
  [[nodiscard]] std::unique_ptr<qmp::Session> observer() {
    return must(qmp::Session::connect(guest_->observer_qmp_path()));
  }
  [[nodiscard]] SidecarConfig config() const {
    SidecarConfig config;
    config.qmp_path = guest_->qmp_path();
    config.store = store_->address();
    config.interval = milliseconds(50);
    config.once = false;
    config.pause_deadline = kPauseDeadline;
    config.extra_args = {"--retry-most-s", "1"};
    return config;
  }
  /// Of the witness's disk, by QEMU.
  [[nodiscard]] Json figures_of_writes() {
    for (const Json& disk : must(observer()->execute("query-blockstats"))) {
      if (disk.value("qdev", "").find("first") != std::string::npos) return disk.at("stats");
    }
    throw std::runtime_error("QEMU does not tell of the disk's writes");
  }
  void expect_writes_go_on() {
    const auto count = [&] { return figures_of_writes().at("wr_operations").get<std::uint64_t>(); };
    const std::uint64_t before = count();
    wait_until([&] { return count() > before + 20; });
    EXPECT_EQ(must(qmp::query_status(*observer())).text, "running");
  }
  /// How many of the guest's writes took longer than each of kLatencies.
  [[nodiscard]] std::vector<std::uint64_t> late_writes() {
    const Json bins = figures_of_writes().at("wr_latency_histogram").at("bins");
    std::vector<std::uint64_t> late;
    std::uint64_t sum = 0;
    for (std::size_t i = bins.size() - 1; i > 0; --i) {
      late.insert(late.begin(), sum += bins.at(i).get<std::uint64_t>());
    }
    return late;
  }

  static constexpr milliseconds kPauseDeadline{300};
  /// In nanoseconds.
  static inline const std::vector<std::uint64_t> kLatencies{100'000'000, 1'000'000'000,
                                                            3'000'000'000};
  TempDir folder_;
  std::unique_ptr<QemuGuest> guest_;
  std::optional<StoreProgram> store_;

 private:
  /// With something to copy.
  static void fill(const std::string& path) {
    std::ofstream file(path, std::ios::binary | std::ios::in | std::ios::out);
    std::mt19937_64 random(7);
    std::vector<std::uint64_t> words(1 << 17);
    for (int i = 0; i < 64; ++i) {
      for (std::uint64_t& word : words) word = random();
      file.write(reinterpret_cast<const char*>(words.data()),
                 static_cast<std::streamsize>(words.size() * sizeof words[0]));
    }
  }
};

// In the first copy, between two epochs, at a cut: the worker, or it and its guard.
TEST_F(DiskFaults, KillsAtAnyMomentCostNeitherAWriteNorAnEpoch) {
  boot();
  if (IsSkipped() || HasFailure()) return;
  std::mt19937 random(1);
  const std::uint64_t kills = disk_kills();
  for (std::uint64_t i = 0; i < kills; ++i) {
    SidecarProgram sidecar = must(SidecarProgram::start(config()));
    if (i % 2 == 1) must(sidecar.wait_for_epochs(2, io::deadline_after(kFaultPatience)));
    ::poll(nullptr, 0, static_cast<int>(random() % (i % 2 == 1 ? 300 : 1500)));
    const auto worker = sidecar.worker_pid();
    if (!worker) continue;  // it was just being started
    if (i % 4 < 2) {
      ::kill(*worker, i % 4 == 0 ? SIGKILL : SIGSTOP);
      const std::size_t before = sidecar.epochs();
      expect_writes_go_on();
      must(sidecar.wait_for_epochs(before + 3, io::deadline_after(kFaultPatience)));
      EXPECT_EQ(must(sidecar.stop()).text(), "exit code 0") << sidecar.messages();
      EXPECT_TRUE(must(qmp::query_block_jobs(*observer())).empty());
    } else {
      // Nobody is left to release a VM that stands still just then, but whoever comes next.
      kill_both(sidecar, *worker);
      // (Refused while what was killed is still dying.)
      wait_until([&] {
        return must(run_program({program_path("vmshadow-sidecar"), "--release", "--qmp",
                                 guest_->qmp_path()}))
            .status.success();
      });
      expect_writes_go_on();
      EXPECT_TRUE(must(qmp::query_block_jobs(*observer())).empty());
    }
  }
  EXPECT_GE(expect_all_exact(store_->directory()), 100U);
  const auto late = late_writes();
  fmt::print("{} kills: {} writes took over 0.1 s, {} over 1 s, {} over 3 s\n", kills, late[0],
             late[1], late[2]);
  EXPECT_EQ(late[2], 0U);
  EXPECT_EQ(must(guest_->reports()).back().bad_pages, 0U);
}

// More than is held for it between two epochs stays in QEMU until there is room: then an epoch may
// be larger than what is held for it.
TEST_F(DiskFaults, ABurstOverTheBufferIsOneEpoch) {
  boot();
  if (IsSkipped() || HasFailure()) return;
  SidecarConfig slow = config();
  slow.interval = milliseconds(4000);
  slow.pause_deadline = seconds(10);  // on a busy machine its writes take QEMU long to drain
  slow.extra_args.insert(slow.extra_args.end(), {"--disk-buffer-mib", "64"});
  SidecarProgram sidecar = must(SidecarProgram::start(slow));
  must(sidecar.wait_for_epochs(1, io::deadline_after(kFaultPatience)));
  must(guest_
           ->run_command("dd if=/dev/vdb of=/dev/vdb bs=1M count=128 seek=128 oflag=direct "
                         "2>/dev/null",
                         io::deadline_after(kFaultPatience))
           .map([](const std::string&) {}));
  const std::size_t before = sidecar.epochs();
  must(sidecar.wait_for_epochs(before + 2, io::deadline_after(kFaultPatience)));
  EXPECT_EQ(must(sidecar.stop()).text(), "exit code 0") << sidecar.messages();
  EXPECT_EQ(sidecar.attachments(), 1U) << sidecar.messages();
  expect_writes_go_on();
  expect_all_exact(store_->directory());
  // Of the second disk, both halves are the same now.
  const auto reader = must(store::Reader::open(store_->directory()));
  const auto image = must(reader->open("vm1", must(reader->vm("vm1")).epochs.back().epoch));
  const BlockIndex disk{static_cast<std::uint16_t>(image->machine().layout.blocks.size() + 1)};
  constexpr std::uint64_t kHalf = (128 << 20) / kPageBytes;
  std::vector<std::byte> one(kPageBytes), other(kPageBytes);
  for (std::uint64_t page = 0; page < kHalf; page += 7) {
    must(image->read_page(disk, PageNumber{page}, one));
    must(image->read_page(disk, PageNumber{kHalf + page}, other));
    ASSERT_EQ(one, other) << page;
  }
}

// What an administrator cannot do meanwhile QEMU says to him, and nothing comes of it.
TEST_F(DiskFaults, ProtectedDisksAreNeitherResizedNorSnapshotNorUnplugged) {
  boot();
  if (IsSkipped() || HasFailure()) return;
  SidecarProgram sidecar = must(SidecarProgram::start(config()));
  must(sidecar.wait_for_epochs(3, io::deadline_after(kFaultPatience)));
  auto monitor = observer();
  const auto refused = [&](const std::string& command, const Json& arguments) {
    const auto reply = monitor->execute(command, arguments);
    EXPECT_FALSE(reply) << command;
    if (!reply) fmt::print("{}: {}\n", command, reply.error().message);
  };
  refused("block_resize", {{"node-name", "disk0"}, {"size", 128 << 20}});
  refused("blockdev-snapshot-sync", {{"node-name", "disk0"},
                                     {"snapshot-file", folder_.file("snapshot.qcow2")},
                                     {"snapshot-node-name", "snap"}});
  refused("device_del", {{"id", "first"}});
  monitor.reset();
  const std::size_t before = sidecar.epochs();
  must(sidecar.wait_for_epochs(before + 3, io::deadline_after(kFaultPatience)));
  EXPECT_EQ(must(sidecar.stop()).text(), "exit code 0") << sidecar.messages();
  expect_writes_go_on();
  expect_all_exact(store_->directory());
}

}  // namespace
}  // namespace vmshadow::test
