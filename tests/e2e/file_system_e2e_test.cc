// A real file system on a protected disk: each epoch's is one that a crash could have left, and the
// restored guest goes on using it as if nothing had been.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <filesystem>
#include <fstream>
#include <string>

#include "store/reader.h"
#include "support/fault_rig.h"
#include "support/guest_shell.h"
#include "support/prerequisite.h"

namespace vmshadow::test {
namespace {

using std::chrono::milliseconds;

constexpr std::uint64_t kFileSystemBytes = std::uint64_t{160} << 20;
constexpr std::size_t kEpochsChecked = 5;
/// So many files were written when QEMU is killed: some have taken the place of others.
constexpr std::size_t kFilesBefore = 45;

/// Writes a file, makes it durable, and only then says so in RAM; for ever. File `n` holds the
/// numbers from n to n + 400 and takes the place of file n - 40.
constexpr const char* kWriter =
    "{ (n=0; while :; do n=$((n+1)); d=/mnt/d$((n%8)); f=$d/f$((n%40)); mkdir -p $d; "
    "seq $n $((n+400)) >$f.new; sync; mv $f.new $f; sync; echo $n >/tmp/new; "
    "mv /tmp/new /tmp/durable; done) >/dev/null 2>&1 & }";
/// Each file of the last 38 that RAM calls durable is on the disk, whole. (The one before them was
/// perhaps just being replaced.)
constexpr const char* kJudge =
    "n=$(cat /tmp/durable); i=$((n>38?n-37:1)); while [ $i -le $n ]; do "
    "f=/mnt/d$((i%8))/f$((i%40)); [ \"$(head -n 1 $f)\" = $i ] && [ \"$(tail -n 1 $f)\" = "
    "$((i+400)) ] && [ $(wc -l <$f) = 401 ] || echo bad $i; i=$((i+1)); done";

std::string ask(Console& console, const std::string& command) {
  return must(run_in_shell(console, command, io::deadline_after(kFaultPatience)));
}

std::string said_by(const std::vector<std::string>& argv, int code_most) {
  const Ran ran = must(run_program(argv));
  EXPECT_TRUE(ran.status.signal == 0 && ran.status.code <= code_most)
      << argv[0] << ": " << ran.status.text() << "\n"
      << ran.out << ran.err;
  return ran.out + ran.err;
}

TEST(FileSystem, Ext4IsOneThatACrashCouldHaveLeftAndTheGuestGoesOnUsingIt) {
  VMSHADOW_REQUIRE(run_program({"mkfs.ext4", "-V"}).has_value()
                       ? Status()
                       : fail(Errc::unsupported, "mkfs.ext4 is missing: install e2fsprogs"));
  const TempDir folder;
  const std::string disk = folder.file("fs.img");
  std::ofstream(disk, std::ios::binary).close();
  std::filesystem::resize_file(disk, kFileSystemBytes);
  said_by({"mkfs.ext4", "-q", "-F", disk}, 0);
  GuestConfig config;
  config.kind = GuestKind::linux_kernel;
  config.witness = {"arena_mib=4", "pages_per_s=100"};
  config.extra_args = {"-blockdev", "driver=file,node-name=file0,cache.direct=on,filename=" + disk,
                       "-blockdev", "driver=raw,node-name=disk0,file=file0",
                       "-device",   "virtio-blk-pci,drive=disk0,id=first"};
  VMSHADOW_REQUIRE(guest_available(config));
  const auto guest = must(QemuGuest::start(config));
  must(guest->wait_for_shell(io::deadline_after(kFaultPatience)));
  ask(guest->console(), "mkdir -p /mnt /tmp && mount -t ext4 /dev/vda /mnt");
  ask(guest->console(), kWriter);

  StoreProgram store = must(StoreProgram::start(folder.file("store")));
  SidecarConfig sidecar_config;
  sidecar_config.qmp_path = guest->qmp_path();
  sidecar_config.store = store.address();
  sidecar_config.interval = milliseconds(100);
  SidecarProgram sidecar = must(SidecarProgram::start(sidecar_config));
  const auto durable = [](Console& console) {
    return std::stoul(ask(console, "cat /tmp/durable 2>/dev/null || echo 0"));
  };
  wait_until([&] { return durable(guest->console()) >= kFilesBefore; });
  must(sidecar.wait_for_epochs(sidecar.epochs() + 3, io::deadline_after(kFaultPatience)));
  guest->kill();
  must(sidecar.process().wait(io::deadline_after(kFaultPatience)));

  const auto restored = must(RestoredGuest::restore({store.directory(),
                                                     "vm1",
                                                     "latest",
                                                     guest->places(),
                                                     guest->env(),
                                                     {},
                                                     folder.file("disks")}));
  Console& console = restored->console();
  const std::size_t at_first = durable(console);
  EXPECT_GE(at_first, kFilesBefore);
  wait_until([&] { return durable(console) > at_first + 5; });
  ask(console, "kill $!; sleep 1");
  EXPECT_EQ(ask(console, kJudge), "");
  EXPECT_EQ(ask(console, "dmesg | grep -iE 'ext4-fs.*(error|warning)|i/o error' || true"), "");
  ask(console, "umount /mnt");
  restored->kill();
  std::size_t images = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder.file("disks"))) {
    ++images;
    said_by({"e2fsck", "-fn", entry.path().string()}, 0);
  }
  EXPECT_EQ(images, 1U);

  // Any epoch's, by itself: its journal is played back (1), and then nothing is wrong.
  const auto reader = must(store::Reader::open(store.directory()));
  const auto epochs = must(reader->vm("vm1")).epochs;
  for (std::size_t i = 0; i < kEpochsChecked; ++i) {
    const Epoch epoch = epochs[i * (epochs.size() - 1) / (kEpochsChecked - 1)].epoch;
    SCOPED_TRACE(fmt::format("epoch {}", epoch.value));
    const std::string out = folder.file(fmt::format("epoch-{}", epoch.value));
    said_by({program_path("shadow-replay"), "--store", store.directory(), "export", "vm1",
             "--epoch", std::to_string(epoch.value), "--format", "raw", "--out", out},
            0);
    std::string image;
    for (const auto& entry : std::filesystem::directory_iterator(out)) {
      if (entry.path().extension() == ".img") image = entry.path().string();
    }
    ASSERT_NE(image, "");
    said_by({"e2fsck", "-fp", image}, 1);
    said_by({"e2fsck", "-fn", image}, 0);
  }
  fmt::print("{} files were durable at the cut\n", at_first);
}

}  // namespace
}  // namespace vmshadow::test
