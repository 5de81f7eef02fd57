// What can happen to a store while it keeps a real VM's epochs: killed, stopped, its directory
// full, read-only, of another version, locked, none at all; its address taken.
#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <poll.h>
#include <sys/mount.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <random>

#include "format/journal.h"
#include "support/fault_rig.h"
#include "support/prerequisite.h"

namespace vmshadow::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
namespace fs = std::filesystem;

constexpr int kStoreKillRounds = 4;

/// A file system of our own, gone with this object.
class SmallFileSystem {
 public:
  static Result<std::unique_ptr<SmallFileSystem>> mount(const std::string& path,
                                                        const std::string& options) {
    fs::create_directory(path);
    if (::mount("vmshadow-test", path.c_str(), "tmpfs", 0, options.c_str()) != 0) {
      return fail_errno(errno, "mounting a tmpfs (run this test as root)");
    }
    return std::unique_ptr<SmallFileSystem>(new SmallFileSystem(path));
  }
  ~SmallFileSystem() { ::umount2(path_.c_str(), MNT_DETACH); }
  SmallFileSystem(const SmallFileSystem&) = delete;
  SmallFileSystem& operator=(const SmallFileSystem&) = delete;
  void remount(unsigned long flags, const std::string& options) {
    must(::mount("vmshadow-test", path_.c_str(), "tmpfs", MS_REMOUNT | flags, options.c_str()) == 0
             ? Status{}
             : Status{fail_errno(errno, "remounting")});
  }

 private:
  explicit SmallFileSystem(std::string path) : path_(std::move(path)) {}
  std::string path_;
};

Ran run_store(const std::string& directory, const std::string& listen = "127.0.0.1:0") {
  return must(
      run_program({program_path("vmshadow-store"), "--dir", directory, "--listen", listen}));
}

void expect_store_refuses(const Ran& ran, const std::vector<std::string>& words) {
  EXPECT_EQ(ran.status.code, 1) << ran.err;
  expect_sentence(ran.err, "vmshadow-store", words);
}

TEST(StoreFaults, EncryptedEpochsNeedTheirKeyAndComeBackExactly) {
  VMSHADOW_REQUIRE(guest_available({}));
  FaultRig rig;
  const std::string keys = rig.path("keys");
  fs::create_directory(keys);
  const std::string key = keys + "/vm1.key";
  std::ofstream(key) << std::string(64, '5') << '\n';
  fs::permissions(key, fs::perms::owner_read);
  {
    StoreProgram store = must(StoreProgram::start(rig.store_directory(), {"--keys", keys}));
    SidecarProgram sidecar = rig.protect(store.address());
    EXPECT_EQ(must(sidecar.stop()).text(), "exit code 0") << sidecar.messages();
    EXPECT_EQ(must(store.stop()).text(), "exit code 0") << store.messages();
  }
  const auto restored = must(RestoredGuest::restore(
      {rig.store_directory(), "vm1", "latest", rig.guest().places(), {}, keys}));
  const WitnessVerdict verdict =
      must(judge(rig.store_directory(), "vm1", rig.guest().witness(), *restored, 20, keys));
  EXPECT_TRUE(verdict.continues_exactly()) << verdict.text();
  const auto without = RestoredGuest::restore(rig.store_directory(), "vm1", "latest", rig.guest());
  ASSERT_FALSE(without);
  EXPECT_THAT(without.error().message, ::testing::HasSubstr("VM 'vm1' has no key"));

  // No silent fall-back to plain.
  const StoreProgram plain = must(StoreProgram::start(rig.store_directory()));
  SidecarProgram refused = must(SidecarProgram::start(rig.config(plain.address())));
  expect_end(refused, 1, {"VM 'vm1' has no key", "nobody can read them"});
  rig.expect_runs_on();
}

TEST(StoreFaults, KilledInMidEpochLosesNothingThatItAcknowledged) {
  VMSHADOW_REQUIRE(guest_available({}));
  FaultRig rig({}, {"arena_mib=8", "pages=all", "tick_us=5000", "fill_words=16"});
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  const std::uint16_t port = store.port();
  std::set<std::uint64_t> acknowledged;
  std::minstd_rand random(1);
  for (int round = 0; round < kStoreKillRounds; ++round) {
    SCOPED_TRACE(round);
    SidecarProgram sidecar = rig.protect(store.address(), 3, milliseconds(5));
    ::poll(nullptr, 0, static_cast<int>(random() % 100));
    store.process().kill();
    expect_end(sidecar, 1,
               {"VM 'vm1' is no longer protected: ", "the store at " + store.address(),
                "the VM runs on, the newest committed epoch is ", "start the sidecar again"});
    rig.expect_runs_on();
    acknowledged.merge(acknowledged_epochs(sidecar));
    rig.expect_nothing_lost(acknowledged);

    // While it is down.
    SidecarProgram early = must(SidecarProgram::start(rig.config(store.address())));
    expect_end(early, 1, {"no store answers", store.address(), "start vmshadow-store there"});

    store = must(StoreProgram::start(rig.store_directory(), {}, port));
  }
  rig.expect_nothing_lost(acknowledged);
  rig.expect_exact();  // the newest one that survived the last kill
  rig.expect_protectable_again(store);
}

TEST(StoreFaults, StoppedInOrderReleasesTheVm) {
  VMSHADOW_REQUIRE(guest_available({}));
  FaultRig rig;
  StoreProgram store = must(StoreProgram::start(rig.store_directory()));
  SidecarProgram sidecar = rig.protect(store.address());
  EXPECT_EQ(must(store.stop()).text(), "exit code 0");
  expect_end(sidecar, 1,
             {"VM 'vm1' is no longer protected: ", "the store at " + store.address(),
              "start the sidecar again"});
  rig.expect_runs_on();
  rig.expect_nothing_lost(acknowledged_epochs(sidecar));
}

TEST(StoreFaults, FullDirectoryIsSaidAndNothingAcknowledgedIsLost) {
  VMSHADOW_REQUIRE(guest_available({}));
  // What a guest fills with noise does not compress: the file system is full soon.
  FaultRig rig({}, {"arena_mib=4", "pages=200", "fill_words=1000"});
  auto mounted = SmallFileSystem::mount(rig.path("small"), "size=12m");
  VMSHADOW_REQUIRE(mounted ? Status{} : Status{fail(mounted.error())});
  const std::string directory = rig.path("small") + "/store";
  fs::create_directory_symlink(directory, rig.store_directory());
  StoreProgram store = must(StoreProgram::start(directory));
  SidecarProgram sidecar = rig.protect(store.address(), 1);
  expect_end(sidecar, 1,
             {"VM 'vm1' is no longer protected: ", "no space in '" + directory + "'",
              "of VM 'vm1': free some", "the VM runs on"});
  rig.expect_runs_on();
  const auto acknowledged = acknowledged_epochs(sidecar);
  EXPECT_FALSE(acknowledged.empty());
  rig.expect_nothing_lost(acknowledged);

  (*mounted)->remount(0, "size=200m");
  rig.expect_protectable_again(store);
  rig.expect_nothing_lost(acknowledged);
}

TEST(StoreFaults, ReadOnlyDirectoryIsRefused) {
  TempDir folder;
  auto mounted = SmallFileSystem::mount(folder.file("ro"), "size=64m");
  VMSHADOW_REQUIRE(mounted ? Status{} : Status{fail(mounted.error())});
  const std::string directory = folder.file("ro") + "/store";
  { StoreProgram made = must(StoreProgram::start(directory)); }
  (*mounted)->remount(MS_RDONLY, "size=64m");
  expect_store_refuses(run_store(directory), {"'" + directory + "'", "Read-only file system"});
  expect_store_refuses(run_store(directory + "2"),
                       {"'" + directory + "2'", "Read-only file system"});
}

TEST(StoreFaults, StoreOfANewerFormatIsLeftAlone) {
  TempDir folder;
  const std::string directory = folder.file("store");
  { StoreProgram made = must(StoreProgram::start(directory)); }
  const std::string identity = directory + "/VMSHADOW-STORE";
  std::string text;
  {
    std::ifstream file(identity);
    text.assign(std::istreambuf_iterator<char>(file), {});
  }
  std::string newer = text;
  const std::string known = fmt::format(" {}\n", format::kStoreVersion);
  const std::size_t version = newer.find(known);
  ASSERT_NE(version, std::string::npos) << text;
  newer.replace(version, known.size(), " 77\n");
  std::ofstream(identity) << newer;
  const std::vector<std::string> words{"'" + identity + "'", "store version 77",
                                       fmt::format("this program knows {}", format::kStoreVersion),
                                       "use a newer vmshadow"};
  expect_store_refuses(run_store(directory), words);
  const Ran listed =
      must(run_program({program_path("shadow-replay"), "--store", directory, "list"}));
  EXPECT_EQ(listed.status.code, 1);
  expect_sentence(listed.err, "shadow-replay", words);
  // Nothing was touched: the program it is meant for opens it.
  std::ofstream(identity) << text;
  EXPECT_TRUE(StoreProgram::start(directory));
}

TEST(StoreFaults, DirectoryOrAddressOfAnotherStoreIsRefused) {
  TempDir folder;
  StoreProgram first = must(StoreProgram::start(folder.file("store")));
  expect_store_refuses(run_store(first.directory()),
                       {"the store '" + first.directory() + "' is open in another process",
                        "locked by process " + std::to_string(first.process().pid())});
  expect_store_refuses(run_store(folder.file("other"), first.address()),
                       {"listening on " + first.address(), "in use", "choose another --listen"});
  EXPECT_EQ(must(first.stop()).text(), "exit code 0");
}

TEST(StoreFaults, WhatIsNoStoreDirectoryIsRefused) {
  TempDir folder;
  std::ofstream(folder.file("file")) << "x";
  expect_store_refuses(run_store(folder.file("file")),
                       {"'" + folder.file("file") + "' is not a directory"});
  fs::create_directory(folder.file("home"));
  std::ofstream(folder.file("home/letter")) << "x";
  expect_store_refuses(run_store(folder.file("home")),
                       {"is not a vmshadow store and not empty (it holds 'letter')",
                        "give an empty or a new directory"});
  expect_store_refuses(run_store(folder.file("none/store")),
                       {"'" + folder.file("none/store") + "'", "No such file or directory"});
  EXPECT_TRUE(fs::exists(folder.file("home/letter")));
}

}  // namespace
}  // namespace vmshadow::test
