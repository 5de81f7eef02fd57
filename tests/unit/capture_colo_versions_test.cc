// The table of QEMU's versions: its order, whom it refuses, and for each series a stream as that
// series sends it, and one as only another does.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <tuple>
#include <vector>

#include "capture/colo_probe.h"
#include "capture/colo_versions.h"
#include "capture/migration_stream.h"
#include "support/migration_stream_builder.h"

namespace vmshadow::capture {
namespace {

using test::MigrationStreamBuilder;
using testing::HasSubstr;

constexpr unsigned kOpenReturnPath = 1;
constexpr unsigned kPing = 2;
constexpr unsigned kPostcopyAdvise = 3;
constexpr unsigned kEnableColo = 8;
constexpr unsigned kSwitchoverStart = 11;

TEST(ColoVersionsTest, RiseStrictly) {
  const auto rows = colo_versions();
  for (std::size_t i = 1; i < rows.size(); ++i) {
    EXPECT_LT(std::tuple(rows[i - 1].major, rows[i - 1].minor, rows[i - 1].micro),
              std::tuple(rows[i].major, rows[i].minor, rows[i].micro));
  }
}

TEST(ColoVersionsTest, RefuseWhatIsTooOldOrBroken) {
  const auto words = [](int major, int minor, int micro) {
    const Status status = check_colo_version({major, minor, micro, ""});
    return status ? std::string() : status.error().message;
  };
  for (const auto& [major, minor, micro] : {std::tuple(5, 0, 0),
                                            {7, 2, 0},
                                            {7, 2, 22},
                                            {8, 2, 9},
                                            {9, 2, 4},
                                            {9, 99, 99},
                                            {10, 0, 7},
                                            {10, 0, 13},
                                            {10, 0, 50},
                                            {10, 2, 0},
                                            {10, 2, 2},
                                            {11, 1, 3},
                                            {99, 0, 0}}) {
    EXPECT_EQ(words(major, minor, micro), "");
  }
  for (const int micro : {0, 2, 6}) {
    EXPECT_THAT(words(10, 0, micro), HasSubstr("has a broken COLO that would leave the VM paused"));
  }
  EXPECT_THAT(words(10, 1, 0), HasSubstr("QEMU 10.1.0 has a broken COLO"));
  EXPECT_THAT(words(10, 1, 9), HasSubstr("use 10.0.7 or newer of the 10.0 series"));
  EXPECT_EQ(words(4, 2, 1),
            "QEMU 4.2.1 is too old for COLO epochs; 5.0 or newer is needed (7.2 is tested)");
}

/// All of `bytes` through a parser of that version's: first pass, then a checkpoint.
struct VersionRun {
  std::vector<MigrationStream::Event> events;
  std::string error;
  bool return_path_opened{};
};
VersionRun run_version(const qmp::QemuVersion& version, const MigrationStreamBuilder& first,
                       const MigrationStreamBuilder& checkpoint) {
  MigrationStream stream;
  stream.set_version(colo_version(version));
  VersionRun run;
  std::vector<PageRef> pages;
  for (const auto* part : {&first, &checkpoint}) {
    ByteSpan rest(part->bytes);
    for (;;) {
      const auto step = stream.parse(rest, pages);
      if (!step) {
        run.error = step.error().message;
        return run;
      }
      rest = rest.subspan(step->consumed);
      if (step->event == MigrationStream::Event::need_more) break;
      run.events.push_back(step->event);
    }
    run.return_path_opened = stream.return_path_opened();
    if (part == &first) {
      EXPECT_TRUE(stream.end_initial());
    }
  }
  return run;
}

MigrationStreamBuilder first_pass_with(const std::vector<unsigned>& before_setup,
                                       const std::vector<unsigned>& before_end) {
  MigrationStreamBuilder b;
  b.header().configuration();
  for (const unsigned number : before_setup) {
    b.command(number, number == kPing ? std::string_view("\0\0\0\1", 4) : std::string_view());
  }
  b.ram_start({{"pc.ram", 4 * kPageBytes}});
  b.part().page("pc.ram", 0, 1).eos().footer();
  for (const unsigned number : before_end) b.command(number);
  b.end().page("pc.ram", kPageBytes, 2).eos().footer();
  b.u8(4).text("devices").u8(0);
  return b;
}

MigrationStreamBuilder checkpoint_with(const std::vector<unsigned>& behind_send) {
  MigrationStreamBuilder b;
  b.message(1).message(3);
  for (const unsigned number : behind_send) b.command(number);
  b.end().page("pc.ram", 0, 3).eos().footer().u8(0);
  b.message(4).b64(5).text("dev!").u8(0);
  return b;
}

struct VersionCase {
  qmp::QemuVersion version;
  std::vector<unsigned> before_setup, before_end, behind_send;
  std::string error;  // part of it; empty: the stream is read to its end
};
void PrintTo(const VersionCase& c, std::ostream* out) { *out << c.version.text(); }

class ColoVersionStreamTest : public testing::TestWithParam<VersionCase> {};

TEST_P(ColoVersionStreamTest, IsReadAsThatVersionSendsIt) {
  const VersionCase& c = GetParam();
  const VersionRun run = run_version(c.version, first_pass_with(c.before_setup, c.before_end),
                                     checkpoint_with(c.behind_send));
  if (!c.error.empty()) {
    EXPECT_THAT(run.error, HasSubstr(c.error));
    return;
  }
  EXPECT_EQ(run.error, "");
  using enum MigrationStream::Event;
  EXPECT_THAT(run.events,
              testing::ElementsAre(layout, device_tail, request, cut, ram_done, device_done));
  const bool opens = !c.before_setup.empty() && c.before_setup.front() == kOpenReturnPath;
  EXPECT_EQ(run.return_path_opened, opens);
}

INSTANTIATE_TEST_SUITE_P(
    Versions, ColoVersionStreamTest,
    testing::Values(
        VersionCase{{7, 2, 22, ""}, {kEnableColo}, {}, {}, ""},
        VersionCase{{8, 2, 0, ""}, {kEnableColo}, {}, {}, ""},
        VersionCase{{9, 2, 0, ""}, {kEnableColo}, {}, {}, ""},
        VersionCase{{9, 2, 0, ""}, {kOpenReturnPath, kPing, kEnableColo}, {}, {}, ""},
        // With a machine type of 9.2 or older, and with its own.
        VersionCase{{10, 0, 13, ""}, {kEnableColo}, {}, {}, ""},
        VersionCase{{10, 0, 13, ""}, {kEnableColo}, {kSwitchoverStart}, {kSwitchoverStart}, ""},
        VersionCase{{10, 2, 2, ""}, {kEnableColo}, {kSwitchoverStart}, {kSwitchoverStart}, ""},
        VersionCase{
            {11, 0, 0, ""}, {kOpenReturnPath, kPing}, {kSwitchoverStart}, {kSwitchoverStart}, ""},
        // What another version sends.
        VersionCase{{7, 2, 22, ""}, {kEnableColo}, {kSwitchoverStart}, {}, "stream command 11"},
        VersionCase{{9, 2, 0, ""}, {kEnableColo}, {}, {kSwitchoverStart}, "stream command 11"},
        VersionCase{{10, 2, 2, ""}, {kEnableColo}, {}, {kEnableColo}, "stream command 8"},
        VersionCase{{10, 2, 2, ""}, {kPostcopyAdvise}, {}, {}, "stream command 3"}));

}  // namespace
}  // namespace vmshadow::capture
