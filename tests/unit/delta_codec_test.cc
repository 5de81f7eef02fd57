#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "delta/page_group_codec.h"
#include "format/epoch_records.h"

namespace vmshadow::delta {
namespace {

using format::Codec;
using format::PageKey;

std::vector<std::byte> random_bytes(std::size_t count, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> bytes(count);
  for (auto& b : bytes) b = static_cast<std::byte>(random());
  return bytes;
}

/// Text-like pages: lz4 makes them smaller, and every page refers back to earlier ones.
std::vector<std::byte> compressible_pages(std::size_t pages) {
  const auto words = random_bytes(64 * 16, 7);
  std::mt19937_64 random(8);
  std::vector<std::byte> bytes;
  while (bytes.size() < pages * kPageBytes) {
    const auto* word = words.data() + (random() % 64) * 16;
    bytes.insert(bytes.end(), word, word + 16);
  }
  bytes.resize(pages * kPageBytes);
  return bytes;
}

std::vector<PageKey> keys_for(std::size_t count) {
  std::vector<PageKey> keys;
  for (std::size_t i = 0; i < count; ++i) keys.push_back({BlockIndex{1}, PageNumber{i * 3 + 1}});
  return keys;
}

std::vector<std::byte> body_of(const std::vector<std::byte>& pages) {
  PageGroupEncoder encoder;
  std::vector<std::byte> body;
  encoder.append_body(body, keys_for(pages.size() / kPageBytes), pages.data());
  return body;
}

TEST(PageGroupCodecTest, EveryGroupSizeRoundTripsWholeAndPageByPage) {
  for (std::size_t count = 1; count <= format::kGroupPagesMax; ++count) {
    const auto pages = compressible_pages(count);
    const auto body = body_of(pages);
    const auto group = format::decode_page_group(body);
    ASSERT_TRUE(group) << group.error().message;
    EXPECT_EQ(group->codec, Codec::lz4);
    EXPECT_LT(body.size(), pages.size() / 2);
    ASSERT_EQ(group->page_count, count);
    for (std::size_t i = 0; i < count; ++i) EXPECT_EQ(group->keys[i], keys_for(count)[i]);
    std::vector<std::byte> out(pages.size());
    ASSERT_TRUE(decode_pages(*group, out));
    EXPECT_EQ(out, pages);
    for (std::size_t slot = 0; slot < count; ++slot) {
      std::vector<std::byte> page(kPageBytes);
      ASSERT_TRUE(decode_page(*group, slot, page));
      EXPECT_TRUE(std::equal(page.begin(), page.end(),
                             pages.begin() + static_cast<std::ptrdiff_t>(slot * kPageBytes)))
          << "slot " << slot << " of " << count;
    }
  }
}

TEST(PageGroupCodecTest, WhatIsWantedIsDecodedAndCheckedAlone) {
  for (const bool compressible : {true, false}) {
    const auto pages = compressible ? compressible_pages(5) : random_bytes(5 * kPageBytes, 2);
    auto body = body_of(pages);
    // The last page's checksum is wrong: who does not want it does not mind.
    body[format::page_group_keys_bytes(5) + 4 * sizeof(le64)] ^= std::byte{1};
    const auto group = format::decode_page_group(body);
    ASSERT_TRUE(group) << group.error().message;
    for (std::uint16_t wanted = 1; wanted < 1 << 5; ++wanted) {
      std::vector<std::byte> out(pages.size());
      const auto decoded = decode_wanted(*group, wanted, out);
      ASSERT_EQ(decoded.has_value(), wanted < 1 << 4) << wanted;
      if (!decoded) {
        EXPECT_THAT(decoded.error().message, testing::HasSubstr("checksum differs"));
      }
      for (std::size_t slot = 0; slot < 4 && decoded; ++slot) {
        if ((wanted >> slot & 1) == 0) continue;
        const auto at = static_cast<std::ptrdiff_t>(slot * kPageBytes);
        EXPECT_TRUE(
            std::equal(pages.begin() + at, pages.begin() + at + kPageBytes, out.begin() + at));
      }
    }
  }
}

/// Where a block is decoded in part, liblz4 takes a match at distance 0 that reaches over the end
/// for whatever was in the output before: even who knows that, and its checksum, must not get it as
/// a page.
TEST(PageGroupCodecTest, AMatchAtDistanceZeroBringsNoMemoryOfOurs) {
  constexpr std::ptrdiff_t literals = 4064;
  std::vector<std::byte> ours(kPageBytes, std::byte{0xee});
  std::fill_n(ours.begin(), literals, std::byte{0xa5});
  const std::vector<std::uint64_t> checksums(2, format::page_checksum(ours.data()));
  // Literals, whole 32 bytes (liblz4 copies so many at once); a match of 4123 bytes; five literals.
  std::vector<std::byte> payload = {std::byte{0xff}};
  const auto append_length = [&](std::size_t rest) {
    for (; rest >= 255; rest -= 255) payload.push_back(std::byte{255});
    payload.push_back(static_cast<std::byte>(rest));
  };
  append_length(literals - 15);
  payload.insert(payload.end(), literals, std::byte{0xa5});
  payload.insert(payload.end(), 2, std::byte{0});
  append_length(4123 - 4 - 15);
  payload.push_back(std::byte{0x50});
  payload.insert(payload.end(), 5, std::byte{0xee});
  std::vector<std::byte> body;
  format::append_page_group_body(body, Codec::lz4, keys_for(2), checksums, payload);
  const auto group = format::decode_page_group(body);
  ASSERT_TRUE(group) << group.error().message;
  std::vector<std::byte> memory(2 * kPageBytes, std::byte{0xee});
  EXPECT_FALSE(decode_wanted(*group, 1, memory));
  memory.assign(memory.size(), std::byte{0xee});
  EXPECT_FALSE(decode_page(*group, 0, MutableByteSpan(memory).first(kPageBytes)));
  memory.assign(memory.size(), std::byte{0xee});
  EXPECT_FALSE(decode_pages(*group, memory));
  EXPECT_EQ(salvage_pages(*group, memory), 0u);
}

TEST(PageGroupCodecTest, LostPagesSayWhy) {
  const format::PageKey key{};
  const std::uint64_t none = 0;
  const std::string text = "segment 7\x1b[2J fails";
  std::vector<std::byte> body;
  format::append_page_group_body(body, Codec::lost, {&key, 1}, {&none, 1},
                                 std::as_bytes(std::span(text)));
  const auto group = format::decode_page_group(body);
  ASSERT_TRUE(group) << group.error().message;
  std::vector<std::byte> out(kPageBytes);
  for (const Status& status : {decode_pages(*group, out), decode_page(*group, 0, out)}) {
    ASSERT_FALSE(status);
    EXPECT_EQ(status.error().code, Errc::corrupt);
    EXPECT_EQ(status.error().message, "the pages were lost to damage: segment 7?[2J fails");
  }
}

TEST(PageGroupCodecTest, IncompressiblePagesAreStoredRaw) {
  const auto pages = random_bytes(3 * kPageBytes, 1);
  const auto body = body_of(pages);
  EXPECT_EQ(body.size(), sizeof(format::PageGroupHeadBytes) + 6 * sizeof(le64) + pages.size());
  const auto group = format::decode_page_group(body);
  ASSERT_TRUE(group) << group.error().message;
  EXPECT_EQ(group->codec, Codec::raw);
  std::vector<std::byte> out(pages.size());
  ASSERT_TRUE(decode_pages(*group, out));
  EXPECT_EQ(out, pages);
  std::vector<std::byte> page(kPageBytes);
  ASSERT_TRUE(decode_page(*group, 2, page));
  EXPECT_TRUE(std::equal(page.begin(), page.end(), pages.end() - kPageBytes));
}

TEST(PageGroupCodecTest, AnEncoderMayBeUsedAgain) {
  PageGroupEncoder encoder;
  const auto pages = compressible_pages(16);
  std::vector<std::byte> first;
  std::vector<std::byte> second;
  encoder.append_body(first, keys_for(16), pages.data());
  encoder.append_body(second, keys_for(16), pages.data());
  EXPECT_EQ(first, second);
}

TEST(PageGroupCodecTest, AnAcceleratedEncoderMakesLargerGroupsThatDecodeAsWell) {
  const auto pages = compressible_pages(format::kGroupPagesMax);
  PageGroupEncoder encoder;
  encoder.set_acceleration(16);
  std::vector<std::byte> body;
  encoder.append_body(body, keys_for(format::kGroupPagesMax), pages.data());
  EXPECT_GT(body.size(), body_of(pages).size());
  EXPECT_LT(body.size(), pages.size());
  const auto group = format::decode_page_group(body);
  ASSERT_TRUE(group) << group.error().message;
  std::vector<std::byte> out(pages.size());
  ASSERT_TRUE(decode_pages(*group, out));
  EXPECT_EQ(out, pages);
}

TEST(PageGroupCodecTest, OnePageIsDecodedWithoutWhatFollowsIt) {
  const auto pages = compressible_pages(16);
  auto body = body_of(pages);
  const auto whole = format::decode_page_group(body);
  ASSERT_TRUE(whole) << whole.error().message;
  auto damaged = *whole;
  damaged.payload = whole->payload.first(whole->payload.size() / 2);
  std::vector<std::byte> page(kPageBytes);
  EXPECT_TRUE(decode_page(damaged, 0, page));
  EXPECT_TRUE(std::equal(page.begin(), page.end(), pages.begin()));
  const auto last = decode_page(damaged, 15, page);
  ASSERT_FALSE(last);
  EXPECT_EQ(last.error().code, Errc::corrupt);
}

TEST(PageGroupCodecTest, PayloadOfAnotherLengthIsCorrupt) {
  const auto pages = compressible_pages(4);
  const auto body = body_of(pages);
  auto group = format::decode_page_group(body);
  ASSERT_TRUE(group) << group.error().message;
  for (const std::size_t claimed : {3, 5}) {
    auto wrong = *group;
    wrong.page_count = claimed;
    std::vector<std::byte> out(claimed * kPageBytes);
    const auto decoded = decode_pages(wrong, out);
    ASSERT_FALSE(decoded) << claimed;
    EXPECT_EQ(decoded.error().code, Errc::corrupt);
    EXPECT_NE(decoded.error().message.find("do not decode"), std::string::npos);
  }
  auto empty = *group;
  empty.payload = {};
  std::vector<std::byte> out(pages.size());
  EXPECT_FALSE(decode_pages(empty, out));
  EXPECT_FALSE(decode_page(empty, 0, MutableByteSpan(out).first(kPageBytes)));
}

TEST(PageGroupCodecTest, DamagedPayloadsNeverDecodeOutOfBounds) {
  const auto pages = compressible_pages(8);
  const auto body = body_of(pages);
  const auto group = format::decode_page_group(body);
  ASSERT_TRUE(group) << group.error().message;
  std::mt19937_64 random(3);
  for (int round = 0; round < 2000; ++round) {
    std::vector<std::byte> payload(group->payload.begin(), group->payload.end());
    for (int hits = 0; hits < 4; ++hits) {
      payload[random() % payload.size()] = static_cast<std::byte>(random());
    }
    auto damaged = *group;
    damaged.payload = payload;
    // Heap buffers of the exact size: the address sanitizer sees a byte too many.
    std::vector<std::byte> out(pages.size());
    const auto whole = decode_pages(damaged, out);
    EXPECT_TRUE(whole || whole.error().code == Errc::corrupt);
    std::vector<std::byte> page(kPageBytes);
    const auto one = decode_page(damaged, random() % 8, page);
    EXPECT_TRUE(one || one.error().code == Errc::corrupt);
  }
}

/// Every page that is salvaged is what it was, and of a raw group all but the one that was hit are.
TEST(PageGroupCodecTest, SalvageKeepsWhatIsWholeAndNothingElse) {
  for (const bool compressible : {true, false}) {
    const auto pages = compressible ? compressible_pages(16) : random_bytes(16 * kPageBytes, 3);
    const auto body = body_of(pages);
    const std::size_t payload_at = format::page_group_keys_bytes(16) + 16 * sizeof(le64);
    std::size_t salvaged = 0;
    std::size_t flips = 0;
    for (std::size_t at = payload_at - 16 * sizeof(le64); at < body.size(); at += 61) {
      auto damaged = body;
      damaged[at] ^= static_cast<std::byte>(1u << at % 8);
      const auto group = format::decode_page_group(damaged);
      ASSERT_TRUE(group) << at;
      std::vector<std::byte> out(pages.size());
      const std::uint16_t whole = salvage_pages(*group, out);
      for (std::size_t slot = 0; slot < 16; ++slot) {
        if ((whole >> slot & 1) == 0) continue;
        ++salvaged;
        ASSERT_TRUE(std::equal(out.begin() + slot * kPageBytes,
                               out.begin() + (slot + 1) * kPageBytes,
                               pages.begin() + slot * kPageBytes))
            << "byte " << at << " page " << slot;
      }
      if (at < payload_at) {
        const std::size_t slot = (at + 16 * sizeof(le64) - payload_at) / sizeof(le64);
        EXPECT_EQ(whole, 0xffff & ~(1u << slot)) << "checksum " << slot;
      } else if (!compressible) {
        EXPECT_EQ(whole, 0xffff & ~(1u << (at - payload_at) / kPageBytes)) << at;
      }
      ++flips;
    }
    ASSERT_GT(flips, 100u);
    // lz4 refers back: what is lost there loses what was made of it.
    EXPECT_GT(salvaged, compressible ? flips : 14 * flips);
    const auto group = format::decode_page_group(body);
    std::vector<std::byte> out(pages.size());
    EXPECT_EQ(salvage_pages(*group, out), 0xffff);
    EXPECT_EQ(out, pages);
  }
}

}  // namespace
}  // namespace vmshadow::delta
