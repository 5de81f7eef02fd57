// Finding and decoding the witness's control page in an epoch's memory, and the protocol by which
// the guest keeps it: at any instruction it says how much of the console's text has left.
#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <memory>
#include <vector>

#include "guest/witness_layout.h"
#include "support/witness_report.h"

namespace vmshadow::test {
namespace {

using witness::ControlPage;

ControlPage make_control(std::uint64_t line = 5) {
  ControlPage page{};
  std::memcpy(page.magic, witness::kMagic, sizeof page.magic);
  page.version = witness::kVersion;
  page.kind = witness::kKindBare;
  for (std::uint8_t i = 0; i < 16; ++i) page.nonce[i] = i;
  page.arena_address = 0x120000;
  page.arena_pages = 4096;
  page.line_bytes = witness::kLineBytes;
  page.constants_check = witness::constants_check(page);
  page.line = line;
  page.progress = witness::pack_progress(line - 1, witness::kLineBytes);
  page.first_bad_page = witness::kNoPage;
  page.writes = 77;
  page.started = 1;
  return page;
}

ByteSpan bytes_of(const ControlPage& page) { return std::as_bytes(std::span(&page, 1)); }

// An epoch held in a map; pages absent from it are zero.
class MapImage final : public EpochImage {
 public:
  MapImage() { machine_.layout.blocks = {{"pc.bios", kPageBytes}, {"pc.ram", 64 * kPageBytes}}; }
  void put(PageNumber page, const ControlPage& control) {
    auto& bytes = pages_[page.value];
    bytes.resize(kPageBytes);
    std::memcpy(bytes.data(), &control, kPageBytes);
  }
  MachineDescription machine_;

  [[nodiscard]] const EpochInfo& info() const override { return info_; }
  [[nodiscard]] const MachineDescription& machine() const override { return machine_; }
  [[nodiscard]] Result<std::vector<std::byte>> device_state() const override {
    return std::vector<std::byte>{std::byte{0}};
  }
  [[nodiscard]] Status read_page(BlockIndex, PageNumber, MutableByteSpan) const override {
    return fail(Errc::unsupported, "not needed here");
  }
  [[nodiscard]] Status for_each_page(BlockIndex block, const PageVisitor& visit) const override {
    EXPECT_EQ(block.value, 1);  // pc.ram
    VMSHADOW_TRY(visit(PageNumber{0}, nullptr));
    for (const auto& [page, bytes] : pages_) VMSHADOW_TRY(visit(PageNumber{page}, bytes.data()));
    return {};
  }

 private:
  EpochInfo info_;
  std::map<std::uint64_t, std::vector<std::byte>> pages_;
};

TEST(WitnessControl, Decodes) {
  const auto control = decode_witness_control(bytes_of(make_control()));
  ASSERT_TRUE(control) << control.error().message;
  EXPECT_EQ(control->kind, WitnessControl::Kind::bare);
  EXPECT_EQ(nonce_text(control->nonce), "000102030405060708090a0b0c0d0e0f");
  EXPECT_EQ(control->arena_address, 0x120000U);
  EXPECT_EQ(control->arena_pages, 4096U);
  EXPECT_EQ(control->line, 5U);
  EXPECT_FALSE(control->line_begun);
  EXPECT_EQ(control->sent, 0U);
  EXPECT_EQ(control->writes, 77U);
  EXPECT_FALSE(control->first_bad_page);
}

TEST(WitnessControl, AFinishedLineCountsAsDone) {
  auto page = make_control(5);
  page.progress = witness::pack_progress(5, witness::kLineBytes);  // `line` not yet advanced
  const auto control = decode_witness_control(bytes_of(page));
  ASSERT_TRUE(control);
  EXPECT_EQ(control->line, 6U);
  EXPECT_FALSE(control->line_begun);
  EXPECT_TRUE(control->text.empty());
}

TEST(WitnessControl, RefusesWhatIsNotOne) {
  const auto error_of = [](const ControlPage& page) {
    const auto control = decode_witness_control(bytes_of(page));
    return control ? Error{} : control.error();
  };
  auto page = make_control();
  page.magic[3] = 'x';
  EXPECT_EQ(error_of(page).code, Errc::not_found);

  page = make_control();
  page.nonce[0] ^= 1;
  EXPECT_EQ(error_of(page).code, Errc::corrupt);
  EXPECT_NE(error_of(page).message.find("does not match its own checksum"), std::string::npos);

  page = make_control();
  page.version = 9;
  page.constants_check = witness::constants_check(page);
  EXPECT_EQ(error_of(page).code, Errc::version);
  EXPECT_NE(error_of(page).message.find("version 9, not 2"), std::string::npos);

  page = make_control();
  page.started = 0;
  EXPECT_EQ(error_of(page).code, Errc::not_found);
  EXPECT_NE(error_of(page).message.find("had not begun"), std::string::npos);

  page = make_control(5);
  page.progress = witness::pack_progress(5, witness::kLineBytes + 1);
  EXPECT_EQ(error_of(page).code, Errc::corrupt);
  EXPECT_NE(error_of(page).message.find("97 bytes of a line of 96"), std::string::npos);

  EXPECT_EQ(decode_witness_control(bytes_of(make_control()).first(100)).error().code,
            Errc::not_found);
}

TEST(WitnessControl, IsFoundInAnEpoch) {
  MapImage image;
  image.put(PageNumber{7}, ControlPage{});
  image.put(PageNumber{33}, make_control(8));
  const auto control = find_witness_control(image);
  ASSERT_TRUE(control) << control.error().message;
  EXPECT_EQ(control->page, PageNumber{33});
  EXPECT_EQ(control->line, 8U);
}

TEST(WitnessControl, NoneOrTwoOrNoRam) {
  MapImage image;
  EXPECT_EQ(find_witness_control(image).error().code, Errc::not_found);
  image.put(PageNumber{3}, make_control());
  image.put(PageNumber{9}, make_control());
  const auto two = find_witness_control(image);
  ASSERT_FALSE(two);
  EXPECT_EQ(two.error().code, Errc::corrupt);
  EXPECT_NE(two.error().message.find("page 9 of pc.ram: a second control page, after page 3"),
            std::string::npos)
      << two.error().message;
  image.machine_.layout.blocks[1].name = "mem0";
  EXPECT_NE(find_witness_control(image).error().message.find("no RAM block \"pc.ram\""),
            std::string::npos);
}

TEST(WitnessControl, DamageNamesThePage) {
  MapImage image;
  auto page = make_control();
  page.arena_pages = 1;
  image.put(PageNumber{12}, page);
  const auto control = find_witness_control(image);
  ASSERT_FALSE(control);
  EXPECT_EQ(control.error().code, Errc::corrupt);
  EXPECT_NE(control.error().message.find("page 12 of pc.ram"), std::string::npos);
}

// Runs the guest's own print_report() and cuts it just before and just after every byte leaves.
// From each image the judge must accept what the guest prints from there on.
TEST(WitnessProtocol, EveryCutOfThePrintingContinues) {
  ControlPage page = make_control(5);
  struct Cut {
    ControlPage image;
    std::size_t out;  // bytes on the console at the cut
  };
  std::vector<Cut> cuts;
  std::string console;
  const auto put = [&](char byte) {
    cuts.push_back({page, console.size()});
    console += byte;
    cuts.push_back({page, console.size()});
  };
  for (int i = 0; i < 3; ++i) {
    cuts.push_back({page, console.size()});
    witness::print_report(page, put);
    ++page.writes;
  }
  cuts.push_back({page, console.size()});
  for (int i = 0; i < 2; ++i) witness::print_report(page, [&](char byte) { console += byte; });
  ASSERT_EQ(console.size(), 5 * witness::kLineBytes);
  ASSERT_EQ(page.line, 10U);

  for (const Cut& cut : cuts) {
    const auto control = decode_witness_control(bytes_of(cut.image));
    ASSERT_TRUE(control) << control.error().message;
    std::vector<ConsoleLine> restored;
    std::string rest = console.substr(cut.out);
    for (std::size_t end = 0; (end = rest.find('\n')) != std::string::npos;) {
      restored.push_back({rest.substr(0, end), {}, 0});
      rest.erase(0, end + 1);
    }
    const auto verdict = judge_restore({}, *control, restored);
    ASSERT_TRUE(verdict) << verdict.error().message;
    EXPECT_TRUE(verdict->continues_exactly()) << cut.out << ": " << verdict->text();
  }
}

TEST(WitnessProtocol, LinesGoOnPast32Bits) {
  ControlPage page = make_control(0xffffffffU);
  witness::print_report(page, [](char) {});
  EXPECT_EQ(page.line, 0x100000000U);
}

}  // namespace
}  // namespace vmshadow::test
