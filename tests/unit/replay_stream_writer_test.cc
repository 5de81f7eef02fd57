#include <gtest/gtest.h>

#include "replay/stream_writer.h"
#include "support/memory_epoch_image.h"
#include "support/migration_stream_parser.h"

namespace vmshadow::replay {
namespace {

using testing::MemoryEpochImage;
using testing::MigrationStreamParser;
using testing::page_of;

/// be32 length, "pc".
std::vector<std::byte> configuration() {
  return {std::byte{0}, std::byte{0}, std::byte{0}, std::byte{2}, std::byte{'p'}, std::byte{'c'}};
}

MemoryEpochImage stream_image() {
  MemoryEpochImage image;
  image.machine_.configuration = configuration();
  image.machine_.layout.blocks = {{"pc.ram", 8 * kPageBytes}, {"pc.bios", 2 * kPageBytes}};
  image.machine_.layout.ram_section_id = 2;
  image.machine_.layout.ram_section_instance = 0;
  image.machine_.layout.ram_section_version = 4;
  image.device_state_ = {std::byte{4}, std::byte{9}, std::byte{0}};
  return image;
}

Result<std::vector<std::byte>> collect(const EpochImage& image, StreamStats* stats = nullptr) {
  std::vector<std::byte> stream;
  auto written = write_stream(image, [&](ByteSpan bytes) -> Status {
    stream.insert(stream.end(), bytes.begin(), bytes.end());
    return {};
  });
  if (!written) return fail(std::move(written).error());
  if (stats != nullptr) *stats = *written;
  return stream;
}

TEST(StreamWriterTest, EveryPageOfEveryBlockIsThereOnceAndRight) {
  auto image = stream_image();
  image.pages_[{BlockIndex{0}, PageNumber{3}}] = page_of(3);
  image.pages_[{BlockIndex{0}, PageNumber{5}}] = page_of(0);
  image.pages_[{BlockIndex{1}, PageNumber{0}}] = page_of(7);
  StreamStats stats;
  const auto stream = collect(image, &stats);
  ASSERT_TRUE(stream) << stream.error().message;
  const auto parsed = MigrationStreamParser(*stream).parse();
  EXPECT_EQ(parsed.layout, image.machine_.layout);
  EXPECT_EQ(parsed.configuration, image.machine_.configuration);
  EXPECT_EQ(parsed.device_state, image.device_state_);
  EXPECT_EQ(parsed.vm_description, "");
  EXPECT_EQ(parsed.pages.size(), 10u);
  EXPECT_EQ(parsed.zero_records, 8u);
  for (const auto& [place, times] : parsed.times_sent) EXPECT_EQ(times, 1) << place.second;
  EXPECT_EQ(parsed.pages.at({"pc.ram", 3 * kPageBytes})[100], std::byte{3});
  EXPECT_EQ(parsed.pages.at({"pc.bios", 0})[100], std::byte{7});
  EXPECT_EQ(parsed.pages.at({"pc.ram", 0})[0], std::byte{0});
  EXPECT_EQ(stats.pages, 10u);
  EXPECT_EQ(stats.zero_pages, 8u);
  EXPECT_EQ(stats.bytes, stream->size());
}

TEST(StreamWriterTest, ABlockIsNamedOnceAndThenContinued) {
  const auto stream = collect(stream_image());
  ASSERT_TRUE(stream) << stream.error().message;
  EXPECT_EQ(MigrationStreamParser(*stream).parse().name_records, 2u);
}

TEST(StreamWriterTest, TheFirstBytesAreThoseQemuExpects) {
  const auto stream = collect(stream_image());
  ASSERT_TRUE(stream) << stream.error().message;
  const unsigned expected[] = {'Q', 'E', 'V', 'M', 0, 0, 0, 3, 7, 0, 0, 0, 2, 'p', 'c', 1, 0, 0, 0,
                               2, 3, 'r', 'a', 'm', 0, 0, 0, 0, 0, 0, 0, 4,
                               // 10 pages: 0xa000, flag MEM_SIZE
                               0, 0, 0, 0, 0, 0, 0xa0, 0x04, 6, 'p', 'c', '.', 'r', 'a', 'm'};
  ASSERT_GT(stream->size(), std::size(expected));
  for (std::size_t i = 0; i < std::size(expected); ++i) {
    EXPECT_EQ(std::to_integer<unsigned>((*stream)[i]), expected[i]) << "byte " << i;
  }
}

TEST(StreamWriterTest, PiecesAreBoundedAndProgressReachesTheTotal) {
  auto image = stream_image();
  image.machine_.layout.blocks[0].bytes = 300 * kPageBytes;
  for (std::uint64_t i = 0; i < 300; ++i) image.pages_[{BlockIndex{0}, PageNumber{i}}] = page_of(1);
  image.device_state_.assign(3 * kStreamPieceBytes, std::byte{0});
  std::size_t pieces = 0;
  std::uint64_t last_done = 0;
  const auto written = write_stream(
      image,
      [&](ByteSpan bytes) -> Status {
        EXPECT_LE(bytes.size(), kStreamPieceBytes);
        EXPECT_FALSE(bytes.empty());
        ++pieces;
        return {};
      },
      [&](std::uint64_t done, std::uint64_t total) {
        EXPECT_GE(done, last_done);
        EXPECT_EQ(total, 302u);
        last_done = done;
      });
  ASSERT_TRUE(written) << written.error().message;
  EXPECT_GT(pieces, 7u);
  EXPECT_EQ(last_done, 302u);
}

TEST(StreamWriterTest, TheSinksErrorEndsTheWriting) {
  int calls = 0;
  auto image = stream_image();
  image.device_state_.assign(3 * kStreamPieceBytes, std::byte{0});
  const auto written = write_stream(image, [&](ByteSpan) -> Status {
    ++calls;
    return fail(Errc::closed, "the peer went away");
  });
  ASSERT_FALSE(written);
  EXPECT_EQ(written.error().code, Errc::closed);
  EXPECT_EQ(written.error().message, "the peer went away");
  EXPECT_EQ(calls, 1);
}

TEST(StreamWriterTest, AnImageThatContradictsItselfIsCorrupt) {
  auto outside = stream_image();
  outside.pages_[{BlockIndex{1}, PageNumber{2}}] = page_of(1);
  const auto stream = collect(outside);
  ASSERT_FALSE(stream);
  EXPECT_EQ(stream.error().code, Errc::corrupt);
  EXPECT_NE(stream.error().message.find("page 2 of 'pc.bios'"), std::string::npos);

  auto endless = stream_image();
  endless.device_state_.back() = std::byte{1};
  const auto no_end = collect(endless);
  ASSERT_FALSE(no_end);
  EXPECT_EQ(no_end.error().code, Errc::corrupt);
  EXPECT_NE(no_end.error().message.find("lacks its end"), std::string::npos);

  auto headless = stream_image();
  headless.machine_.configuration.clear();
  EXPECT_EQ(collect(headless).error().code, Errc::corrupt);
}

class TwiceImage : public MemoryEpochImage {
 public:
  explicit TwiceImage(const MemoryEpochImage& other) : MemoryEpochImage(other) {}
  [[nodiscard]] Status for_each_page(BlockIndex block, const PageVisitor& visit) const override {
    VMSHADOW_TRY(MemoryEpochImage::for_each_page(block, visit));
    return MemoryEpochImage::for_each_page(block, visit);
  }
};

TEST(StreamWriterTest, APageVisitedTwiceIsCorrupt) {
  auto image = stream_image();
  image.pages_[{BlockIndex{0}, PageNumber{1}}] = page_of(1);
  const auto stream = collect(TwiceImage(image));
  ASSERT_FALSE(stream);
  EXPECT_EQ(stream.error().code, Errc::corrupt);
  EXPECT_NE(stream.error().message.find("twice"), std::string::npos);
}

}  // namespace
}  // namespace vmshadow::replay
