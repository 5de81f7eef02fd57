// The NBD server with the clients that people have: libnbd's tools and QEMU's.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <thread>

#include "nbd/server.h"
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

}  // namespace
}  // namespace vmshadow::test
