// Disks, cut at the same instant as RAM: real guests that write to real images, and a judge who
// knows from each epoch's RAM what its disks must hold.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "qmp/commands.h"
#include "store/reader.h"
#include "support/disk_oracle.h"
#include "support/fault_rig.h"
#include "support/prerequisite.h"

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
  if (GetParam().iothreads) {
    const std::string second = make_image(folder, "second.img", 32 << 20);
    add(config.extra_args,
        {"-object", "iothread,id=io1", "-device", "virtio-blk-pci,drive=d0,id=first,iothread=io1",
         "-drive", "file=" + second + ",format=raw,if=none,id=d1,cache=none", "-device",
         "virtio-blk-pci,drive=d1,id=second,iothread=io1"});
  } else {
    const std::string second = folder.file("second.qcow2");
    must(run_program({"qemu-img", "create", "-q", "-f", "qcow2", second, "32M"}).map([](Ran) {}));
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
  EXPECT_TRUE(must(qmp::query_block_exports(*observer)).empty());
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

}  // namespace
}  // namespace vmshadow::test
