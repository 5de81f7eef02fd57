// The parser against hand-built streams, in every chunking, and against everything it must refuse.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "capture/migration_stream.h"
#include "capture/run_state_at_cut.h"
#include "support/migration_stream_builder.h"

namespace vmshadow::capture {
namespace {

using Event = MigrationStream::Event;
using test::MigrationStreamBuilder;
using testing::HasSubstr;

const MigrationStreamBuilder::Blocks kBlocks{{"pc.ram", 16 * kPageBytes},
                                             {"pc.bios", 4 * kPageBytes}};

struct SeenPage {
  int block;
  std::uint64_t page;
  int fill;  // -1: zero page
  bool operator==(const SeenPage&) const = default;
};
void PrintTo(const SeenPage& p, std::ostream* out) {
  *out << "{" << p.block << "," << p.page << "," << p.fill << "}";
}

/// Feeds a stream in chunks of given sizes, as the drain does: unconsumed bytes come again.
struct Feeder {
  MigrationStream stream;
  std::vector<SeenPage> pages;
  std::vector<Event> events;
  std::vector<std::byte> device;
  std::optional<Error> error;

  void feed(const std::vector<std::byte>& bytes, const std::function<std::size_t()>& next_chunk) {
    std::vector<std::byte> window;
    std::size_t given = 0;
    while (!error) {
      std::vector<PageRef> refs;
      auto step = stream.parse(window, refs);
      if (!step) {
        error = step.error();
        return;
      }
      for (const PageRef& ref : refs) {
        pages.push_back({ref.block.value, ref.page.value,
                         ref.data == nullptr ? -1 : static_cast<int>(ref.data[kPageBytes - 1])});
      }
      window.erase(window.begin(), window.begin() + static_cast<std::ptrdiff_t>(step->consumed));
      if (step->event != Event::need_more) {
        events.push_back(step->event);
        if (step->event == Event::device_done) device = stream.take_device_state();
        continue;
      }
      ASSERT_LT(window.size(), MigrationStream::kItemBytesMax);
      if (given == bytes.size()) return;
      const std::size_t count = std::min(next_chunk(), bytes.size() - given);
      window.insert(window.end(), bytes.begin() + static_cast<std::ptrdiff_t>(given),
                    bytes.begin() + static_cast<std::ptrdiff_t>(given + count));
      given += count;
    }
  }
  void feed(const std::vector<std::byte>& bytes) {
    feed(bytes, [] { return std::size_t{1} << 30; });
  }
};

MigrationStreamBuilder initial_pass() {
  MigrationStreamBuilder b;
  b.header().configuration().command(8).ram_start(kBlocks);
  b.part().page("pc.ram", 0, 1).page("", kPageBytes, 2).zero("", 2 * kPageBytes).eos().footer();
  b.end().zero("pc.bios", 0).page("", kPageBytes, 3).eos().footer();
  return b;
}

std::string tail_with_description() {
  std::string tail(
      "\x04"
      "devices",
      8);
  tail += '\0';
  const std::string json = "{\"page_size\": 4096}";
  tail += '\x06';
  tail += std::string("\0\0\0", 3) + static_cast<char>(json.size());
  return tail + json;
}

MigrationStreamBuilder checkpoint() {
  MigrationStreamBuilder b;
  b.message(1).message(3).command(11);
  // CONTINUE straight away: the block is the one of the epoch before.
  b.part().page("", 2 * kPageBytes, 7).eos().footer();
  b.end().page("pc.ram", 15 * kPageBytes, 8).eos().footer().u8(0);
  b.message(4).b64(5).text("dev!").u8(0);
  return b;
}

TEST(MigrationStreamTest, ReadsTheFirstPassAndCheckpoints) {
  Feeder feeder;
  auto first = initial_pass();
  first.text(tail_with_description());
  feeder.feed(first.bytes);
  ASSERT_FALSE(feeder.error) << feeder.error->message;
  EXPECT_THAT(feeder.events, testing::ElementsAre(Event::layout, Event::device_tail));
  EXPECT_EQ(feeder.stream.layout().blocks[1].name, "pc.bios");
  EXPECT_EQ(feeder.stream.layout().ram_section_version, 4u);
  ASSERT_TRUE(feeder.stream.end_initial());
  const auto tail = feeder.stream.take_device_state();
  EXPECT_EQ(tail.size(), 9u) << "the description must be cut off, its 0x00 kept";

  feeder.feed(checkpoint().bytes);
  ASSERT_FALSE(feeder.error) << feeder.error->message;
  feeder.feed(checkpoint().bytes);
  ASSERT_FALSE(feeder.error) << feeder.error->message;
  EXPECT_THAT(feeder.pages,
              testing::ElementsAre(SeenPage{0, 0, 1}, SeenPage{0, 1, 2}, SeenPage{0, 2, -1},
                                   SeenPage{1, 0, -1}, SeenPage{1, 1, 3}, SeenPage{1, 2, 7},
                                   SeenPage{0, 15, 8}, SeenPage{0, 2, 7}, SeenPage{0, 15, 8}));
  EXPECT_EQ(feeder.device.size(), 5u);
  EXPECT_EQ(feeder.stream.pages_seen(), 9u);
  EXPECT_EQ(feeder.stream.zero_pages_seen(), 2u);
}

TEST(MigrationStreamTest, ChunkingChangesNothing) {
  auto first = initial_pass();
  first.text(tail_with_description());
  Feeder whole;
  whole.feed(first.bytes);
  ASSERT_TRUE(whole.stream.end_initial());
  whole.feed(checkpoint().bytes);

  std::mt19937 random(7);
  for (const std::size_t limit : {1u, 2u, 3u, 7u, 8u, 9u, 100u, 4096u, 4104u, 5000u}) {
    for (int round = 0; round < (limit == 1 ? 1 : 20); ++round) {
      std::uniform_int_distribution<std::size_t> size(1, limit);
      const auto next = [&] { return size(random); };
      Feeder feeder;
      feeder.feed(first.bytes, next);
      ASSERT_FALSE(feeder.error) << feeder.error->message << " in chunks of up to " << limit;
      ASSERT_TRUE(feeder.stream.end_initial());
      feeder.feed(checkpoint().bytes, next);
      ASSERT_FALSE(feeder.error) << feeder.error->message << " in chunks of up to " << limit;
      ASSERT_EQ(feeder.pages, whole.pages);
      ASSERT_EQ(feeder.events, whole.events);
      ASSERT_EQ(feeder.device, whole.device);
    }
  }
}

TEST(MigrationStreamTest, DeviceTailWithoutDescription) {
  Feeder feeder;
  auto b = initial_pass();
  b.text("\x04sections").u8(0);
  feeder.feed(b.bytes);
  ASSERT_TRUE(feeder.stream.end_initial());
  EXPECT_EQ(feeder.stream.take_device_state().size(), 10u);
}

TEST(MigrationStreamTest, DeviceTailThatLooksLikeADescriptionIsKept) {
  Feeder feeder;
  auto b = initial_pass();
  // 00 06 and a length that does not fit: state, not a description.
  b.u8(4).u8(0).u8(6).b32(1).text("{}").u8(0);
  feeder.feed(b.bytes);
  ASSERT_TRUE(feeder.stream.end_initial());
  EXPECT_EQ(feeder.stream.take_device_state().size(), 10u);
}

// Without COLO nothing but the description tells where a migration ends.
TEST(MigrationStreamTest, AMigrationEndsWithItsDescription) {
  Feeder feeder;
  auto b = initial_pass();
  b.text("\x04sections").u8(0).u8(6).b32(6).text("{\"a\"");
  feeder.feed(b.bytes);
  auto whole = feeder.stream.end_with_description();
  ASSERT_TRUE(whole);
  EXPECT_FALSE(*whole);
  MigrationStreamBuilder brace;  // of an object inside
  feeder.feed(brace.text("}").bytes);
  whole = feeder.stream.end_with_description();
  ASSERT_TRUE(whole);
  EXPECT_FALSE(*whole);
  MigrationStreamBuilder rest;
  feeder.feed(rest.text("}").bytes);
  whole = feeder.stream.end_with_description();
  ASSERT_TRUE(whole);
  EXPECT_TRUE(*whole);
  EXPECT_EQ(feeder.stream.take_device_state().size(), 10u);
  MigrationStreamBuilder more;
  feeder.feed(more.u8(0).bytes);
  ASSERT_TRUE(feeder.error);
  EXPECT_THAT(feeder.error->message, HasSubstr("bytes behind the end of a migration"));
}

std::vector<std::byte> global_state(std::string_view run_state) {
  return MigrationStreamBuilder().global_state(run_state).u8(0).bytes;
}

TEST(RunStateAtCutTest, IsReadFromTheGlobalState) {
  EXPECT_EQ(run_state_at_cut(global_state("running")), "running");
  EXPECT_EQ(run_state_at_cut(global_state("guest-panicked")), "guest-panicked");
  EXPECT_EQ(run_state_at_cut({}), std::nullopt);
  // A section that is cut off, or a name that heads none.
  auto cut = global_state("running");
  cut.resize(cut.size() - 2);
  EXPECT_EQ(run_state_at_cut(cut), std::nullopt);
  // What a guest wrote into a device's memory comes before QEMU's own.
  auto both = global_state("running");
  const auto real = global_state("paused");
  both.insert(both.end(), real.begin(), real.end());
  EXPECT_EQ(run_state_at_cut(both), "paused");
}

TEST(MigrationStreamTest, ConfigurationKeepsItsSubsections) {
  Feeder feeder;
  MigrationStreamBuilder b;
  b.header().configuration("q35");
  b.u8(5).short_text("configuration/target-page-bits").b32(1).b32(12);
  b.u8(5).short_text("configuration/capabilities").b32(1).b32(1).short_text("x-colo");
  b.u8(5).short_text("configuration/uuid").b32(1).text("0123456789abcdef");
  b.ram_start(kBlocks);
  feeder.feed(b.bytes);
  ASSERT_FALSE(feeder.error) << feeder.error->message;
  const std::size_t subsections = (1 + 31 + 4 + 4) + (1 + 27 + 4 + 4 + 7) + (1 + 19 + 4 + 16);
  EXPECT_EQ(feeder.stream.configuration().size(), 4 + 3 + subsections);
}

struct Refusal {
  const char* name;
  std::function<void(MigrationStreamBuilder&)> build;
  Errc code;
  const char* words;
};

class MigrationStreamRefuses : public testing::TestWithParam<Refusal> {};

TEST_P(MigrationStreamRefuses, ByName) {
  MigrationStreamBuilder b;
  GetParam().build(b);
  for (const std::size_t chunk : {std::size_t{1}, std::size_t{1} << 20}) {
    Feeder feeder;
    feeder.feed(b.bytes, [&] { return chunk; });
    ASSERT_TRUE(feeder.error) << "in chunks of " << chunk;
    EXPECT_EQ(feeder.error->code, GetParam().code) << feeder.error->message;
    EXPECT_THAT(feeder.error->message, HasSubstr(GetParam().words));
    EXPECT_THAT(feeder.error->message, HasSubstr("at byte "));
  }
}

const Refusal kRefusals[] = {
    {"Magic", [](auto& b) { b.b32(0x12345678).b32(3); }, Errc::protocol, "not a migration stream"},
    {"Version", [](auto& b) { b.b32(0x5145564d).b32(2); }, Errc::unsupported, "version 2"},
    {"SectionType", [](auto& b) { b.header().u8(0x55); }, Errc::protocol, "section type 0x55"},
    {"LiveDevice",
     [](auto& b) { b.header().configuration().u8(1).b32(9).short_text("vfio").b32(0).b32(1); },
     Errc::unsupported, "'vfio'"},
    {"EarlyDevice", [](auto& b) { b.header().u8(4).b32(9).short_text("virtio-mem"); },
     Errc::unsupported, "'virtio-mem'"},
    {"Subsection",
     [](auto& b) { b.header().configuration().u8(5).short_text("configuration/new").b32(1); },
     Errc::unsupported, "configuration/new"},
    {"PageBits",
     [](auto& b) {
       b.header().configuration().u8(5).short_text("configuration/target-page-bits").b32(1).b32(16);
     },
     Errc::unsupported, "2^16"},
    {"MachineName", [](auto& b) { b.header().u8(7).b32(0x7fffffff); }, Errc::protocol, "too long"},
    {"Command", [](auto& b) { b.header().command(99); }, Errc::unsupported, "command 99"},
    {"BlockTooLarge",
     [](auto& b) {
       b.header().u8(1).b32(2).short_text("ram").b32(0).b32(4);
       b.b64(0x1000 | 4).short_text("pc.ram").b64(0x2000);
     },
     Errc::protocol, "'pc.ram' of 8192"},
    {"BlockTwice",
     [](auto& b) {
       b.header().ram_start({{"a", kPageBytes}, {"a", kPageBytes}});
     },
     Errc::protocol, "twice"},
    {"BlockOdd",
     [](auto& b) {
       b.header().u8(1).b32(2).short_text("ram").b32(0).b32(4);
       b.b64(0x2000 | 4).short_text("pc.ram").b64(0x801);
     },
     Errc::protocol, "not possible"},
    {"UnknownBlock", [](auto& b) { b.header().ram_start(kBlocks).part().page("vga.vram", 0, 1); },
     Errc::protocol, "'vga.vram'"},
    {"PageOutside",
     [](auto& b) { b.header().ram_start(kBlocks).part().page("pc.ram", 16 * kPageBytes, 1); },
     Errc::protocol, "outside RAM block 'pc.ram'"},
    {"ContinueFirst", [](auto& b) { b.header().ram_start(kBlocks).part().page("", 0, 1); },
     Errc::protocol, "CONTINUE"},
    {"Xbzrle", [](auto& b) { b.header().ram_start(kBlocks).part().b64(0x40); }, Errc::unsupported,
     "'xbzrle'"},
    {"Compress", [](auto& b) { b.header().ram_start(kBlocks).part().b64(0x100); },
     Errc::unsupported, "'compress'"},
    {"Multifd", [](auto& b) { b.header().ram_start(kBlocks).part().b64(0x200); }, Errc::unsupported,
     "'multifd'"},
    {"Hook", [](auto& b) { b.header().ram_start(kBlocks).part().b64(0x80); }, Errc::unsupported,
     "RDMA"},
    {"NoFlags", [](auto& b) { b.header().ram_start(kBlocks).part().b64(0x1000); }, Errc::protocol,
     "flags 0"},
    {"PageAndZero", [](auto& b) { b.header().ram_start(kBlocks).part().b64(0x8 | 0x2); },
     Errc::protocol, "flags 0xa"},
    {"Fill",
     [](auto& b) { b.header().ram_start(kBlocks).part().b64(2).short_text("pc.ram").u8(0xff); },
     Errc::unsupported, "filled with 0xff"},
    {"Footer", [](auto& b) { b.header().ram_start(kBlocks).part().eos().footer(3); },
     Errc::protocol, "without its footer"},
    {"OtherSection", [](auto& b) { b.header().ram_start(kBlocks).u8(2).b32(9); }, Errc::protocol,
     "section 9"},
    {"EndsEarly", [](auto& b) { b.header().ram_start(kBlocks).u8(0); }, Errc::closed,
     "before its RAM was complete"},
};
INSTANTIATE_TEST_SUITE_P(All, MigrationStreamRefuses, testing::ValuesIn(kRefusals),
                         [](const auto& param) { return std::string(param.param.name); });

class CheckpointRefuses : public testing::TestWithParam<Refusal> {};

TEST_P(CheckpointRefuses, ByName) {
  Feeder feeder;
  auto first = initial_pass();
  first.u8(4).u8(0);
  feeder.feed(first.bytes);
  ASSERT_TRUE(feeder.stream.end_initial());
  MigrationStreamBuilder b;
  GetParam().build(b);
  feeder.feed(b.bytes);
  ASSERT_TRUE(feeder.error);
  EXPECT_EQ(feeder.error->code, GetParam().code) << feeder.error->message;
  EXPECT_THAT(feeder.error->message, HasSubstr(GetParam().words));
}

const Refusal kCheckpointRefusals[] = {
    {"MessageOrder", [](auto& b) { b.message(3); }, Errc::protocol, "message 3 where 1"},
    {"UnknownMessage", [](auto& b) { b.message(1).message(17); }, Errc::protocol, "message 17"},
    {"HugeDeviceState",
     [](auto& b) { b.message(1).message(3).u8(0).message(4).b64(std::uint64_t{1} << 40); },
     Errc::protocol, "device state of"},
    {"NoDeviceState", [](auto& b) { b.message(1).message(3).u8(0).message(4).b64(0); },
     Errc::protocol, "device state of 0"},
    {"DeviceStateWithoutEnd",
     [](auto& b) { b.message(1).message(3).u8(0).message(4).b64(2).u8(4).u8(1); }, Errc::protocol,
     "does not end in 0x00"},
    {"SecondBlockList", [](auto& b) { b.message(1).message(3).part().b64(0x1000 | 4); },
     Errc::protocol, "second block list"},
    {"SecondConfiguration", [](auto& b) { b.message(1).message(3).configuration(); },
     Errc::protocol, "configuration"},
};
INSTANTIATE_TEST_SUITE_P(All, CheckpointRefuses, testing::ValuesIn(kCheckpointRefusals),
                         [](const auto& param) { return std::string(param.param.name); });

TEST(MigrationStreamTest, DeviceTailWithoutItsEndIsAnError) {
  Feeder feeder;
  auto b = initial_pass();
  b.text("\x04unfinished");
  feeder.feed(b.bytes);
  const auto status = feeder.stream.end_initial();
  ASSERT_FALSE(status);
  EXPECT_THAT(status.error().message, HasSubstr("does not end in 0x00"));
}

}  // namespace
}  // namespace vmshadow::capture
