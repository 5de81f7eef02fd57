// Whatever an epoch holds, the stream made of it parses back to exactly its RAM and devices.
#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include "replay/stream_writer.h"
#include "support/memory_epoch_image.h"
#include "support/migration_stream_parser.h"

namespace vmshadow::replay {
namespace {

RC_GTEST_PROP(ReplayProperty, StreamsParseBackToTheEpoch, ()) {
  testing::MemoryEpochImage image;
  image.machine_.configuration.assign(4, std::byte{0});
  image.machine_.layout.ram_section_id = *rc::gen::arbitrary<std::uint32_t>();
  image.machine_.layout.ram_section_version = 4;
  const auto block_pages =
      *rc::gen::nonEmpty(rc::gen::container<std::vector<unsigned>>(rc::gen::inRange(1u, 100u)));
  for (std::size_t i = 0; i < block_pages.size(); ++i) {
    image.machine_.layout.blocks.push_back(
        {"block" + std::to_string(i), std::uint64_t{block_pages[i]} * kPageBytes});
    const auto held =
        *rc::gen::container<std::vector<unsigned>>(rc::gen::inRange(0u, block_pages[i]));
    for (const unsigned page : held) {
      auto& bytes = image.pages_[{BlockIndex{static_cast<std::uint16_t>(i)}, PageNumber{page}}];
      bytes.fill(std::byte{0});
      bytes[page] = static_cast<std::byte>(page * 7 % 5);  // some stay zero
    }
  }
  image.device_state_ = *rc::gen::container<std::vector<std::byte>>(rc::gen::map(
      rc::gen::inRange(0, 256), [](int value) { return static_cast<std::byte>(value); }));
  image.device_state_.push_back(std::byte{0});

  std::vector<std::byte> stream;
  const auto written = write_stream(image, [&](ByteSpan bytes) -> Status {
    stream.insert(stream.end(), bytes.begin(), bytes.end());
    return {};
  });
  RC_ASSERT(written.has_value());
  RC_ASSERT(written->bytes == stream.size());
  const auto parsed = testing::MigrationStreamParser(stream).parse();
  RC_ASSERT(parsed.layout == image.machine_.layout);
  RC_ASSERT(parsed.device_state == image.device_state_);
  RC_ASSERT(parsed.name_records == block_pages.size());
  for (std::size_t i = 0; i < block_pages.size(); ++i) {
    for (unsigned page = 0; page < block_pages[i]; ++page) {
      const std::pair place{"block" + std::to_string(i), std::uint64_t{page} * kPageBytes};
      RC_ASSERT(parsed.times_sent.at(place) == 1);
      testing::MemoryEpochImage::Page expected;
      RC_ASSERT(
          image.read_page(BlockIndex{static_cast<std::uint16_t>(i)}, PageNumber{page}, expected)
              .has_value());
      RC_ASSERT(std::memcmp(parsed.pages.at(place).data(), expected.data(), kPageBytes) == 0);
    }
  }
}

}  // namespace
}  // namespace vmshadow::replay
