// The NBD server with the clients that people have: libnbd's tools and QEMU's.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <optional>
#include <thread>

#include "capture/disk_mirror.h"
#include "capture/disk_target.h"
#include "nbd/server.h"
#include "qmp/session.h"
#include "support/fault_rig.h"
#include "support/memory_device.h"
#include "support/prerequisite.h"
#include "support/process.h"
#include "support/temp_dir.h"

namespace vmshadow::test {
namespace {

using ::testing::HasSubstr;

constexpr std::uint64_t kDiskBytes = 8 << 20;
constexpr std::chrono::seconds kWithin{60};
/// As QEMU calls one without an id: longer than a node's name may be.
constexpr const char* kDiskName = "/machine/peripheral-anon/device[0]/virtio-backend";

Status have(const std::string& program) {
  if (in_path(program)) return {};
  return fail(Errc::not_found, program + " is not installed: run tools/setup");
}

class NbdClients : public testing::Test {
 protected:
  NbdClients()
      : disk_(std::make_shared<MemoryDevice>(kDiskBytes)), wake_(::eventfd(0, EFD_CLOEXEC)) {
    server_ = must(nbd::Server::listen(
        folder_.file("nbd"), {{"disk0", "a disk for clients", disk_},
                              {"frozen", "", std::make_shared<MemoryDevice>(kDiskBytes, true)}}));
    thread_ = std::thread([this] { EXPECT_TRUE(server_->serve(wake_.get())); });
  }
  ~NbdClients() override {
    const std::uint64_t one = 1;
    EXPECT_EQ(::write(wake_.get(), &one, sizeof one), 8);
    thread_.join();
  }

  [[nodiscard]] std::string uri(const std::string& name) const {
    return fmt::format("nbd+unix:///{}?socket={}", name, folder_.file("nbd"));
  }
  std::string run(const std::vector<std::string>& argv) {
    const Ran ran = must(run_program(argv, kWithin));
    EXPECT_TRUE(ran.status.success()) << argv[0] << ": " << ran.err;
    return ran.out;
  }
  /// A file with data at its ends and in its middle, and holes between.
  std::string sparse_image() {
    std::string path = folder_.file("image");
    std::ofstream file(path, std::ios::binary);
    for (const std::uint64_t at : {std::uint64_t{0}, kDiskBytes / 2 - 70000, kDiskBytes - 65536}) {
      file.seekp(static_cast<std::streamoff>(at));
      for (int i = 0; i < 65536; ++i) file.put(static_cast<char>((i * 31 + i / 256) & 0xff));
    }
    return path;
  }
  void expect_disk_is(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    const std::string bytes{std::istreambuf_iterator<char>(file), {}};
    const auto content = disk_->content();
    ASSERT_EQ(bytes.size(), content.size());
    EXPECT_EQ(std::memcmp(bytes.data(), content.data(), bytes.size()), 0);
  }

  TempDir folder_;
  std::shared_ptr<MemoryDevice> disk_;
  UniqueFd wake_;
  std::unique_ptr<nbd::Server> server_;
  std::thread thread_;
};

TEST_F(NbdClients, NbdinfoSeesTheExports) {
  VMSHADOW_REQUIRE(have("nbdinfo"));
  const auto seen = nlohmann::json::parse(run({"nbdinfo", "--json", "--list", uri("")}));
  ASSERT_EQ(seen.at("exports").size(), 2U);
  const auto& first = seen.at("exports").at(0);
  EXPECT_EQ(first.at("export-name"), "disk0");
  EXPECT_EQ(first.at("description"), "a disk for clients");
  EXPECT_EQ(first.at("export-size"), kDiskBytes);
  EXPECT_EQ(first.at("is_read_only"), false);
  for (const char* can :
       {"can_fua", "can_flush", "can_trim", "can_zero", "can_multi_conn", "can_df"}) {
    EXPECT_EQ(first.at(can), true) << can;
  }
  EXPECT_EQ(seen.at("exports").at(1).at("is_read_only"), true);
}

TEST_F(NbdClients, NbdcopyBringsAnImageAndItsHolesThereAndBack) {
  VMSHADOW_REQUIRE(have("nbdcopy"));
  const std::string image = sparse_image();
  run({"nbdcopy", "--connections=4", image, uri("disk0")});
  expect_disk_is(image);
  run({"nbdcopy", "--connections=4", uri("disk0"), folder_.file("back")});
  expect_disk_is(folder_.file("back"));
  VMSHADOW_REQUIRE(have("nbdinfo"));
  const auto map = nlohmann::json::parse(run({"nbdinfo", "--json", "--map", uri("disk0")}));
  std::uint64_t holes = 0;
  for (const auto& extent : map) {
    if (extent.at("type") == 3) holes += extent.at("length").get<std::uint64_t>();
  }
  EXPECT_GT(holes, kDiskBytes / 2);
}

TEST_F(NbdClients, QemuImgConvertsComparesAndMaps) {
  VMSHADOW_REQUIRE(have("qemu-img"));
  const std::string image = sparse_image();
  run({"qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", "-W", image, uri("disk0")});
  expect_disk_is(image);
  EXPECT_THAT(run({"qemu-img", "compare", "-f", "raw", "-F", "raw", image, uri("disk0")}),
              HasSubstr("identical"));
  run({"qemu-img", "convert", "-f", "raw", "-O", "qcow2", uri("disk0"), folder_.file("qcow2")});
  EXPECT_THAT(run({"qemu-img", "compare", image, folder_.file("qcow2")}), HasSubstr("identical"));
  const auto map =
      nlohmann::json::parse(run({"qemu-img", "map", "--output=json", "-f", "raw", uri("disk0")}));
  EXPECT_GE(map.size(), 4U);
}

TEST_F(NbdClients, QemuIoWritesZeroesAndDiscards) {
  VMSHADOW_REQUIRE(have("qemu-io"));
  const std::string said = run({"qemu-io",
                                "-f",
                                "raw",
                                "-c",
                                "write -P 0x5a 0 128k",
                                "-c",
                                "write -f -P 0xa5 64k 4k",
                                "-c",
                                "write -z 0 4k",
                                "-c",
                                "write -z -u 4k 4k",
                                "-c",
                                "discard 8k 8k",
                                "-c",
                                "flush",
                                "-c",
                                "read -P 0 0 16k",
                                "-c",
                                "read -P 0x5a 16k 48k",
                                "-c",
                                "read -P 0xa5 64k 4k",
                                uri("disk0")});
  EXPECT_THAT(said, ::testing::Not(HasSubstr("failed")));
  EXPECT_GE(disk_->flushes(), 1);
  const Ran refused =
      must(run_program({"qemu-io", "-f", "raw", "-c", "write 0 4k", uri("frozen")}, kWithin));
  EXPECT_FALSE(refused.status.success());
}

TEST_F(NbdClients, TheDevicesErrorsReachThem) {
  VMSHADOW_REQUIRE(have("qemu-io"));
  disk_->fail_with({Errc::no_space, "the store is full"});
  const Ran ran =
      must(run_program({"qemu-io", "-f", "raw", "-c", "write 0 4k", uri("disk0")}, kWithin));
  EXPECT_THAT(ran.out + ran.err, HasSubstr("No space left on device"));
}

// ---- as the target of a mirror

/// A QEMU with a disk and no machine; "guests" are clients of its own NBD export of the disk.
class MirroredDisk {
 public:
  MirroredDisk(const std::string& image, std::size_t held_pages_max)
      : target_(std::make_shared<capture::DiskTarget>(kDiskBytes, held_pages_max)),
        wake_(::eventfd(0, EFD_CLOEXEC)),
        server_(must(nbd::Server::listen(folder_.file("target"), {{"disk0", "", target_}}))),
        thread_([this] { EXPECT_TRUE(server_->serve(wake_.get())); }) {
    ProcessOptions options;
    options.argv = {"qemu-system-x86_64",
                    "-machine",
                    "none",
                    "-nodefaults",
                    "-display",
                    "none",
                    "-qmp",
                    fmt::format("unix:{},server=on,wait=off", folder_.file("qmp")),
                    "-blockdev",
                    fmt::format("driver=file,node-name=file,filename={}", image),
                    "-blockdev",
                    "driver=raw,node-name=disk,file=file"};
    options.stderr_file = folder_.file("messages");
    qemu_.emplace(must(Process::spawn(options)));
    wait_until([&] {
      auto session = qmp::Session::connect(folder_.file("qmp"));
      if (session) session_ = *std::move(session);
      return session_ != nullptr;
    });
    execute("nbd-server-start",
            {{"addr", {{"type", "unix"}, {"data", {{"path", folder_.file("source")}}}}}});
    execute("block-export-add", {{"type", "nbd"},
                                 {"id", "guest"},
                                 {"node-name", "disk"},
                                 {"name", "disk"},
                                 {"writable", true}});
    start_mirror();
  }
  ~MirroredDisk() {
    mirror_.reset();
    session_.reset();
    qemu_.reset();
    const std::uint64_t one = 1;
    EXPECT_EQ(::write(wake_.get(), &one, sizeof one), 8);
    thread_.join();
  }

  [[nodiscard]] capture::DiskTarget& target() { return *target_; }
  void start_mirror() {
    mirror_ = must(capture::DiskMirror::start(*session_,
                                              {kDiskName, "disk", "raw", "image", kDiskBytes, {}},
                                              connection(), "disk0", {kPageBytes, 1 << 20, 0}));
  }
  [[nodiscard]] UniqueFd connection() {
    return must(io::connect_unix(folder_.file("target"), io::deadline_after(kWithin)));
  }
  [[nodiscard]] capture::DiskMirror& mirror() { return *mirror_; }
  /// As if the process that began it had died.
  void abandon_mirror() { static_cast<void>(mirror_.release()); }
  [[nodiscard]] qmp::Session& session() { return *session_; }
  void wait_for(capture::DiskMirror::Phase phase) {
    wait_until([&] { return must(mirror_->progress()).phase == phase; });
  }
  /// Nobody writes: until the mirror has brought all.
  void wait_until_in_step() {
    int in_step = 0;  // a job that was looked at before it had looked itself says so too early
    wait_until([&] {
      must(mirror_->limit_speed(0));
      const auto progress = must(mirror_->progress());
      in_step = progress.bytes_done == progress.bytes_total ? in_step + 1 : 0;
      return in_step == 3;
    });
  }
  /// Jobs, and nodes of ours.
  [[nodiscard]] std::vector<std::string> left_in_qemu() {
    std::vector<std::string> left;
    for (const auto& job : must(qmp::query_block_jobs(*session_))) left.push_back(job.id);
    for (const auto& node : must(qmp::query_block_nodes(*session_))) {
      if (node.starts_with("vmshadow")) left.push_back(node);
    }
    return left;
  }
  /// What a guest would do, as qemu-io's commands; they must succeed.
  void guest_does(const std::vector<std::string>& commands) {
    std::vector<std::string> argv{"qemu-io", "-f", "raw"};
    for (const std::string& command : commands) argv.insert(argv.end(), {"-c", command});
    argv.push_back(fmt::format("nbd+unix:///disk?socket={}", folder_.file("source")));
    const Ran ran = must(run_program(argv, kWithin));
    EXPECT_TRUE(ran.status.success()) << ran.err;
    EXPECT_THAT(ran.out, ::testing::Not(HasSubstr("failed")));
  }

 private:
  nlohmann::json execute(const std::string& command, const nlohmann::json& arguments) {
    return must(
        session_->execute(command, arguments.is_null() ? nlohmann::json::object() : arguments));
  }

  TempDir folder_;
  std::shared_ptr<capture::DiskTarget> target_;
  UniqueFd wake_;
  std::unique_ptr<nbd::Server> server_;
  std::thread thread_;
  std::optional<Process> qemu_;
  std::unique_ptr<qmp::Session> session_;
  std::unique_ptr<capture::DiskMirror> mirror_;
};

/// Writes what a cut holds over `disk`.
void lay_over(const capture::WrittenPages& written, std::string& disk) {
  written.zeroes().for_each([&](capture::PageRange run) {
    std::fill_n(disk.begin() + static_cast<std::ptrdiff_t>(run.first * kPageBytes),
                run.pages() * kPageBytes, '\0');
  });
  for (const PageNumber page : written.pages()) {
    std::memcpy(disk.data() + page.value * kPageBytes, written.content(page).data(), kPageBytes);
  }
}

std::string text_of_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

TEST_F(NbdClients, AMirrorsTargetHoldsTheDiskAndThenWhatIsWritten) {
  VMSHADOW_REQUIRE(have("qemu-system-x86_64"));
  const std::string image = sparse_image();
  MirroredDisk mirrored(image, kDiskBytes / kPageBytes);
  mirrored.wait_for(capture::DiskMirror::Phase::ready);
  const capture::WrittenPages whole = mirrored.target().cut();
  std::string shadow(kDiskBytes, 'x');
  EXPECT_EQ(whole.content_pages() + whole.zero_pages(), kDiskBytes / kPageBytes);
  lay_over(whole, shadow);
  EXPECT_TRUE(shadow == text_of_file(image));

  for (int round = 0; round < 3; ++round) {
    mirrored.guest_does({fmt::format("write -P {} 1M 64k", 17 + round), "write -P 0x22 2M 512",
                         "write -z 3M 8k", "flush"});
    mirrored.wait_until_in_step();
    const capture::WrittenPages written = mirrored.target().cut();
    EXPECT_EQ(written.content_pages() + written.zero_pages(), 16U + 1 + 2);
    lay_over(written, shadow);
    EXPECT_TRUE(shadow == text_of_file(image));
  }
  EXPECT_EQ(mirrored.target().failure(), capture::DiskTarget::Failure::none);
  EXPECT_TRUE(mirrored.mirror().stop());
  EXPECT_THAT(mirrored.left_in_qemu(), ::testing::IsEmpty());
  mirrored.guest_does({"write -P 0x44 1M 4k"});
  EXPECT_TRUE(mirrored.target().cut().empty());
}

TEST_F(NbdClients, AMirrorIsLeftAtAnyTimeAndBegunAgain) {
  VMSHADOW_REQUIRE(have("qemu-system-x86_64"));
  MirroredDisk mirrored(sparse_image(), kDiskBytes / kPageBytes);
  // One byte a second: it stays in its first copy.
  ASSERT_TRUE(mirrored.mirror().limit_speed(1));
  ASSERT_TRUE(mirrored.mirror().stop());
  EXPECT_THAT(mirrored.left_in_qemu(), ::testing::IsEmpty());
  for (int i = 0; i < 5; ++i) {
    mirrored.start_mirror();
    const auto refused =
        capture::DiskMirror::start(mirrored.session(), mirrored.mirror().disk(),
                                   mirrored.connection(), "disk0", {kPageBytes, 1 << 20, 0});
    ASSERT_FALSE(refused);
    EXPECT_THAT(refused.error().message, HasSubstr(kDiskName));
    if (i % 2 == 0) mirrored.wait_for(capture::DiskMirror::Phase::ready);
    // What a sidecar that died left behind, the next takes out.
    mirrored.abandon_mirror();
    EXPECT_EQ(mirrored.left_in_qemu().size(), 2U);
    EXPECT_TRUE(must(capture::end_mirrors(mirrored.session())));
    EXPECT_THAT(mirrored.left_in_qemu(), ::testing::IsEmpty());
    EXPECT_FALSE(must(capture::end_mirrors(mirrored.session())));
  }
  mirrored.start_mirror();
  mirrored.wait_for(capture::DiskMirror::Phase::ready);
}

TEST_F(NbdClients, ATargetThatIsFullCostsTheMirrorAndNotTheGuestsWrites) {
  VMSHADOW_REQUIRE(have("qemu-system-x86_64"));
  const std::string image = sparse_image();
  MirroredDisk mirrored(image, 256);
  mirrored.wait_for(capture::DiskMirror::Phase::ready);
  static_cast<void>(mirrored.target().cut());
  mirrored.guest_does({"write -P 0x11 1M 2M", "write -P 0x12 4M 64k", "read -P 0x11 1M 2M"});
  wait_until([&] { return mirrored.target().failure() == capture::DiskTarget::Failure::overflow; });
  mirrored.wait_until_in_step();
  EXPECT_TRUE(mirrored.target().cut().empty());
  mirrored.guest_does({"write -P 0x13 0 4k", "read -P 0x13 0 4k"});
  EXPECT_TRUE(mirrored.mirror().stop());
  EXPECT_THAT(mirrored.left_in_qemu(), ::testing::IsEmpty());
  mirrored.guest_does({"write -P 0x14 0 4k", "read -P 0x14 0 4k"});
}

}  // namespace
}  // namespace vmshadow::test
