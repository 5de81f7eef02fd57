// The test guests themselves: they boot under every accelerator this machine has, report without a
// gap, find no bad page and write about as fast as they were told.
#include <gtest/gtest.h>

#include <chrono>

#include "support/prerequisite.h"
#include "support/qemu_guest.h"

namespace vmshadow::test {
namespace {

constexpr std::size_t kReports = 60;

io::Deadline boot_deadline() { return io::deadline_after(std::chrono::seconds(120)); }

// `writes_per_s`: what was asked; a loaded machine may be slower, never faster. (Where KVM emulates
// each instruction, beside compilers, a quarter of it was seen.)
void expect_healthy(const GuestConfig& config, double writes_per_s) {
  auto guest = QemuGuest::start(config);
  ASSERT_TRUE(guest) << guest.error().message;
  const auto seen = (*guest)->wait_for_reports(kReports, boot_deadline());
  ASSERT_TRUE(seen) << seen.error().message;
  const auto reports = (*guest)->reports();
  ASSERT_TRUE(reports) << reports.error().message;
  const WitnessRun run = examine_run(*reports);
  EXPECT_GE(run.reports, kReports);
  EXPECT_EQ(reports->front().sequence, 1U);
  EXPECT_TRUE(run.same_run);
  EXPECT_TRUE(run.in_sequence);
  EXPECT_EQ(run.bad_pages, 0U);
  EXPECT_LE(run.writes_per_s, writes_per_s * 1.2);
  EXPECT_GE(run.writes_per_s, writes_per_s * 0.1);
  EXPECT_TRUE((*guest)->process().running());
  (*guest)->kill();
  EXPECT_FALSE((*guest)->process().running());
}

GuestConfig bare(Accelerator accelerator, std::vector<std::string> witness) {
  GuestConfig config;
  config.kind = GuestKind::bare;
  config.accelerator = accelerator;
  config.witness = std::move(witness);
  return config;
}

class BareGuest : public testing::TestWithParam<Accelerator> {};

TEST_P(BareGuest, ReportsAndWrites) {
  const auto config = bare(GetParam(), {"pages=50", "tick_us=10000"});
  VMSHADOW_REQUIRE(guest_available(config));
  expect_healthy(config, 5000);
}

TEST_P(BareGuest, EveryPattern) {
  for (const char* pattern : {"sequential", "stride", "hot"}) {
    const auto config =
        bare(GetParam(), {std::string("pattern=") + pattern, "pages=20", "tick_us=5000",
                          "arena_mib=4", "verify=64", "fill_words=8", "rewrite_same_percent=50"});
    VMSHADOW_REQUIRE(guest_available(config));
    expect_healthy(config, 2000);
  }
}

TEST_P(BareGuest, WritesNothingWhenTold) {
  const auto config = bare(GetParam(), {"pages=0", "tick_us=5000"});
  VMSHADOW_REQUIRE(guest_available(config));
  auto guest = QemuGuest::start(config);
  ASSERT_TRUE(guest) << guest.error().message;
  ASSERT_TRUE((*guest)->wait_for_reports(kReports, boot_deadline()));
  const auto reports = (*guest)->reports();
  ASSERT_TRUE(reports) << reports.error().message;
  EXPECT_EQ(reports->front().writes, reports->back().writes);
}

TEST_P(BareGuest, RewritesEverythingWhenTold) {
  const auto config = bare(GetParam(), {"pages=all", "arena_mib=1", "tick_us=10000"});
  VMSHADOW_REQUIRE(guest_available(config));
  auto guest = QemuGuest::start(config);
  ASSERT_TRUE(guest) << guest.error().message;
  ASSERT_TRUE((*guest)->wait_for_reports(10, boot_deadline()));
  const auto reports = (*guest)->reports();
  ASSERT_TRUE(reports) << reports.error().message;
  for (std::size_t i = 1; i < reports->size(); ++i) {
    EXPECT_EQ((*reports)[i].writes - (*reports)[i - 1].writes, 256U);
  }
  EXPECT_EQ(reports->back().bad_pages, 0U);
}

TEST_P(BareGuest, SaysWhatItCannotDo) {
  const auto config = bare(GetParam(), {"arena_mib=64"});
  VMSHADOW_REQUIRE(guest_available(config));
  auto guest = QemuGuest::start(config);
  ASSERT_TRUE(guest) << guest.error().message;
  const auto words = (*guest)->witness().wait_for(
      "E the arena does not fit into the machine's memory: lower arena_mib or raise -m\n", 0,
      boot_deadline());
  EXPECT_TRUE(words) << words.error().message;
}

TEST_P(BareGuest, TwoRunsDiffer) {
  const auto config = bare(GetParam(), {"pages=1"});
  VMSHADOW_REQUIRE(guest_available(config));
  auto one = QemuGuest::start(config);
  auto other = QemuGuest::start(config);
  ASSERT_TRUE(one && other);
  ASSERT_TRUE((*one)->wait_for_reports(1, boot_deadline()));
  ASSERT_TRUE((*other)->wait_for_reports(1, boot_deadline()));
  EXPECT_NE((*one)->reports()->front().nonce, (*other)->reports()->front().nonce);
}

INSTANTIATE_TEST_SUITE_P(Accelerators, BareGuest,
                         testing::Values(Accelerator::kvm, Accelerator::tcg),
                         [](const auto& tested) {
                           return std::string(tested.param == Accelerator::kvm ? "kvm" : "tcg");
                         });

TEST(LinuxGuest, ReportsAndWrites) {
  GuestConfig config;
  config.kind = GuestKind::linux_kernel;
  config.witness = {"pages_per_s=2000", "report_ms=20"};
  VMSHADOW_REQUIRE(guest_available(config));
  expect_healthy(config, 2000);
}

TEST(LinuxGuest, HasAShell) {
  GuestConfig config;
  config.kind = GuestKind::linux_kernel;
  config.extra_args = {"-netdev", "user,id=n0,restrict=on", "-device", "virtio-net-pci,netdev=n0"};
  VMSHADOW_REQUIRE(guest_available(config));
  auto guest = QemuGuest::start(config);
  ASSERT_TRUE(guest) << guest.error().message;
  ASSERT_TRUE((*guest)->wait_for_shell(boot_deadline()));
  const auto interfaces = (*guest)->run_command("ls /sys/class/net", boot_deadline());
  ASSERT_TRUE(interfaces) << interfaces.error().message;
  EXPECT_NE(interfaces->find("eth0"), std::string::npos) << *interfaces;
}

TEST(ForeignGuest, AnswersOnItsConsole) {
  GuestConfig config;
  config.kind = GuestKind::foreign;
  VMSHADOW_REQUIRE(guest_available(config));
  auto guest = QemuGuest::start(config);
  ASSERT_TRUE(guest) << guest.error().message;
  const auto up = (*guest)->wait_for_shell(boot_deadline());
  ASSERT_TRUE(up) << up.error().message;
  const auto product = (*guest)->run_command("echo $((6*7))", boot_deadline());
  ASSERT_TRUE(product) << product.error().message;
  EXPECT_EQ(*product, "42\n");
  const auto failing = (*guest)->run_command("false", boot_deadline());
  ASSERT_FALSE(failing);
  EXPECT_NE(failing.error().message.find("'false' ended with status 1"), std::string::npos);
}

TEST(GuestStart, AQemuThatRefusesIsQuoted) {
  GuestConfig config = bare(Accelerator::tcg, {"pages=1"});
  VMSHADOW_REQUIRE(guest_available(config));
  config.extra_args = {"-device", "no-such-device"};
  const auto guest = QemuGuest::start(config);
  ASSERT_FALSE(guest);
  EXPECT_NE(guest.error().message.find("'no-such-device' is not a valid device model name"),
            std::string::npos)
      << guest.error().message;
}

TEST(GuestMemory, TcgAvoidsTheFastPath) {
  GuestConfig config = bare(Accelerator::tcg, {});
  config.memory_mib = 256;
  EXPECT_EQ(guest_memory_kib(config), 256U * 1024 - 8);
  config.exact_memory = true;
  EXPECT_EQ(guest_memory_kib(config), 256U * 1024);
  config.exact_memory = false;
  config.accelerator = Accelerator::kvm;
  EXPECT_EQ(guest_memory_kib(config), 256U * 1024);
}

}  // namespace
}  // namespace vmshadow::test
