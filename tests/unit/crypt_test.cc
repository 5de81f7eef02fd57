// Sealing and opening: the published vectors, every flipped bit, the wrong place, the wrong key.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <set>
#include <string>
#include <vector>

#include "crypt/aead.h"
#include "crypt/sealed_record.h"
#include "crypt/vm_key.h"
#include "format/epoch_records.h"
#include "format/sealed_record.h"
#include "support/given_keys.h"

namespace vmshadow::crypt {
namespace {

using format::RecordType;
using testing::HasSubstr;
using Bytes = std::vector<std::byte>;

Bytes bytes_of(std::string_view text) {
  const auto bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}

Bytes from_hex(std::string_view text) {
  Bytes bytes;
  for (std::size_t i = 0; i + 1 < text.size(); i += 2) {
    bytes.push_back(
        static_cast<std::byte>(std::stoul(std::string(text.substr(i, 2)), nullptr, 16)));
  }
  return bytes;
}

SecretKey secret(unsigned value) { return *SecretKey::copy_of(test::key_bytes(value)); }

Nonce nonce_of(std::string_view text) {
  Nonce nonce;
  const Bytes bytes = bytes_of(text);
  std::copy(bytes.begin(), bytes.end(), nonce.begin());
  return nonce;
}

struct XaesVector {
  unsigned key;
  std::string_view associated;
  std::string_view sealed;
};

class XaesTest : public testing::TestWithParam<XaesVector> {};

/// c2sp.org/XAES-256-GCM: one vector for each branch of the subkey.
TEST_P(XaesTest, IsThePublishedVector) {
  const Nonce nonce = nonce_of("ABCDEFGHIJKLMNOPQRSTUVWX");
  const Bytes plain = bytes_of("XAES-256-GCM");
  const Bytes associated = bytes_of(GetParam().associated);
  // In pieces, which count as one.
  const std::array<ByteSpan, 2> pieces = {ByteSpan(associated).first(associated.size() / 2),
                                          ByteSpan(associated).subspan(associated.size() / 2)};
  Bytes out(plain.size() + kTagBytes);
  const MutableByteSpan room(out);
  seal(secret(GetParam().key), nonce, pieces, plain, room.first(plain.size()),
       room.last<kTagBytes>());
  EXPECT_EQ(out, from_hex(GetParam().sealed));
  Bytes opened(plain.size());
  EXPECT_TRUE(open(secret(GetParam().key), nonce, pieces, room.first(plain.size()), opened,
                   ByteSpan(out).last<kTagBytes>()));
  EXPECT_EQ(opened, plain);
}

INSTANTIATE_TEST_SUITE_P(
    Published, XaesTest,
    testing::Values(XaesVector{1, "", "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"},
                    XaesVector{3, "c2sp.org/XAES-256-GCM",
                               "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d"}));

/// RFC 5869, A.1 to A.3.
TEST(HkdfTest, IsThePublishedVector) {
  const auto derive = [](const Bytes& key, const Bytes& salt, const Bytes& info, std::size_t size) {
    Bytes out(size);
    hkdf_sha256(key, salt, info, out);
    return out;
  };
  const auto range = [](unsigned from, unsigned to) {
    Bytes bytes;
    for (unsigned i = from; i <= to; ++i) bytes.push_back(static_cast<std::byte>(i));
    return bytes;
  };
  EXPECT_EQ(derive(Bytes(22, std::byte{0x0b}), range(0x00, 0x0c), range(0xf0, 0xf9), 42),
            from_hex("3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"
                     "34007208d5b887185865"));
  EXPECT_EQ(derive(range(0x00, 0x4f), range(0x60, 0xaf), range(0xb0, 0xff), 82),
            from_hex("b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c"
                     "59045a99cac7827271cb41c65e590e09da3275600c2f09b8367793a9aca3db71"
                     "cc30c58179ec3e87c14c01d5c1f3434f1d87"));
  EXPECT_EQ(derive(Bytes(22, std::byte{0x0b}), {}, {}, 42),
            from_hex("8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d"
                     "9d201395faa4b61a96c8"));
}

TEST(VmKeyTest, OneSecretIsAnotherKeyInEachVm) {
  const auto a = VmKey::derive(secret(7), vm_id("web1"));
  const auto b = VmKey::derive(secret(7), vm_id("web2"));
  const auto again = VmKey::derive(secret(7), vm_id("web1"));
  ASSERT_TRUE(a && b && again);
  EXPECT_EQ(a->id(), again->id());
  EXPECT_NE(a->id(), b->id());
  EXPECT_TRUE(std::ranges::equal(a->record_key().bytes(), again->record_key().bytes()));
  EXPECT_FALSE(std::ranges::equal(a->record_key().bytes(), b->record_key().bytes()));
}

class SealedRecordTest : public testing::Test {
 protected:
  static VmKeys keys_of(const std::vector<unsigned>& values, const VmId& vm = vm_id("web1")) {
    VmKeys keys;
    for (const unsigned value : values) keys.push_back(*VmKey::derive(secret(value), vm));
    return keys;
  }
  static format::RecordHead head(RecordType type) {
    return {type, 9, vm_id("web1"), Generation{3}, Epoch{42}};
  }
  static Bytes group_body() {
    Bytes pages;
    for (unsigned i = 0; i < 2 * kPageBytes; ++i) pages.push_back(std::byte(i * i / 7 % 256));
    const std::array keys = {format::PageKey{BlockIndex{0}, PageNumber{5}},
                             format::PageKey{BlockIndex{1}, PageNumber{77}}};
    const std::array sums = {format::page_checksum(pages.data()),
                             format::page_checksum(pages.data() + kPageBytes)};
    Bytes body;
    format::append_page_group_body(body, format::Codec::raw, keys, sums, pages);
    return body;
  }
  static Bytes sealed(const VmKey& key, RecordType type, const Bytes& body) {
    Bytes out;
    (void)seal_record(key, *random_nonce(), head(type), body, out);
    return out;
  }
  /// Decodes prefix and checksums, as whoever reads it does before it opens it.
  static Status open_whole(const VmKeys& keys, const Bytes& record, Bytes& plain) {
    VMSHADOW_ASSIGN(const auto prefix, format::decode_prefix(record));
    const ByteSpan body = ByteSpan(record).subspan(format::kRecordPrefixBytes);
    VMSHADOW_TRY(format::check_body(prefix, body));
    return open_record(keys, prefix, body, plain);
  }
};

TEST_F(SealedRecordTest, EachTypeOpensToWhatItWas) {
  const VmKeys keys = keys_of({5});
  for (const auto& [type, body] :
       {std::pair{RecordType::page_group, group_body()},
        std::pair{RecordType::device_state, bytes_of("x")},
        std::pair{RecordType::machine, bytes_of("a command line with a secret in it")}}) {
    const Bytes record = sealed(keys.front(), type, body);
    const auto prefix = format::decode_prefix(record);
    ASSERT_TRUE(prefix);
    EXPECT_TRUE(format::is_sealed(prefix->head.type));
    EXPECT_EQ(format::plain_type(prefix->head.type), type);
    EXPECT_EQ(prefix->head.epoch, Epoch{42});
    EXPECT_EQ(prefix->head.sequence, 9u);
    EXPECT_EQ(format::plain_body_bytes(prefix->body_bytes), body.size());
    Bytes plain;
    const auto opened = open_whole(keys, record, plain);
    ASSERT_TRUE(opened) << opened.error().message;
    EXPECT_EQ(plain, body);
  }
}

TEST_F(SealedRecordTest, OfAGroupHeadAndKeysStayReadableAndNothingElse) {
  const VmKeys keys = keys_of({5});
  const Bytes body = group_body();
  const Bytes record = sealed(keys.front(), RecordType::page_group, body);
  const ByteSpan stored = ByteSpan(record).subspan(format::kRecordPrefixBytes);
  const auto group = format::decode_sealed_group_keys(stored);
  ASSERT_TRUE(group) << group.error().message;
  ASSERT_EQ(group->page_count, 2u);
  EXPECT_EQ(group->keys[1], (format::PageKey{BlockIndex{1}, PageNumber{77}}));
  EXPECT_EQ(group->dead_pages, 0u);
  // Not eight bytes in a row of the rest are in it: neither a checksum nor content.
  const ByteSpan rest =
      ByteSpan(body).subspan(format::plain_front_bytes(RecordType::page_group, body));
  for (std::size_t i = 0; i + 8 <= rest.size(); i += 8) {
    const ByteSpan piece = rest.subspan(i, 8);
    EXPECT_EQ(std::search(record.begin(), record.end(), piece.begin(), piece.end()), record.end())
        << i;
  }
}

TEST_F(SealedRecordTest, NoTwoSealingsAreAlike) {
  const VmKeys keys = keys_of({5});
  std::set<Bytes> nonces;
  std::set<Bytes> records;
  for (int i = 0; i < 1000; ++i) {
    const Bytes record = sealed(keys.front(), RecordType::device_state, bytes_of("the same"));
    const auto body = format::decode_sealed_body(
        RecordType::sealed_device_state, ByteSpan(record).subspan(format::kRecordPrefixBytes));
    ASSERT_TRUE(body);
    nonces.insert({body->nonce.begin(), body->nonce.end()});
    records.insert({body->ciphertext.begin(), body->ciphertext.end()});
  }
  EXPECT_EQ(nonces.size(), 1000u);
  EXPECT_EQ(records.size(), 1000u);
}

/// An attacker makes the checksums anew; the tag he cannot.
TEST_F(SealedRecordTest, EachFlippedBitIsRefused) {
  const VmKeys keys = keys_of({5});
  const std::array key = {format::PageKey{BlockIndex{0}, PageNumber{5}}};
  const Bytes page(kPageBytes, std::byte{0xa5});
  const std::array sum = {format::page_checksum(page.data())};
  Bytes body;
  format::append_page_group_body(body, format::Codec::lz4, key, sum, bytes_of("packed"));
  const Bytes record = sealed(keys.front(), RecordType::page_group, body);
  const std::size_t dead_at =
      format::kRecordPrefixBytes + offsetof(format::SealedHeadBytes, dead_pages);
  for (std::size_t bit = format::kRecordPrefixBytes * 8; bit < record.size() * 8; ++bit) {
    if (bit / 8 == dead_at || bit / 8 == dead_at + 1) continue;  // not the tag's
    Bytes changed = record;
    changed[bit / 8] ^= static_cast<std::byte>(1u << bit % 8);
    const auto prefix = format::decode_prefix(record);
    (void)format::finish_record(changed, 0, prefix->head);
    Bytes plain;
    const auto opened = open_whole(keys, changed, plain);
    ASSERT_FALSE(opened) << "bit " << bit;
    EXPECT_TRUE(opened.error().code == Errc::corrupt || opened.error().code == Errc::permission)
        << opened.error().message;
    EXPECT_TRUE(plain.empty()) << "bit " << bit;
  }
}

TEST_F(SealedRecordTest, AnotherPlaceIsRefused) {
  const VmKeys keys = keys_of({5});
  const Bytes record = sealed(keys.front(), RecordType::device_state, bytes_of("state"));
  const format::RecordHead good = format::decode_prefix(record)->head;
  std::vector<format::RecordHead> others(5, good);
  others[0].type = RecordType::sealed_machine;
  others[1].sequence = 8;
  others[2].vm = vm_id("web2");
  others[3].generation = Generation{4};
  others[4].epoch = Epoch{41};
  for (const format::RecordHead& other : others) {
    Bytes moved = record;
    (void)format::finish_record(moved, 0, other);
    Bytes plain;
    const auto opened = open_whole(keys, moved, plain);
    ASSERT_FALSE(opened);
    EXPECT_EQ(opened.error().code, Errc::corrupt);
    EXPECT_THAT(opened.error().message, HasSubstr("its tag does not match"));
  }
  Bytes longer = record;
  longer.push_back(std::byte{0});
  (void)format::finish_record(longer, 0, good);
  Bytes plain;
  EXPECT_FALSE(open_whole(keys, longer, plain));
}

TEST_F(SealedRecordTest, AnotherKeyIsNamed) {
  const VmKeys right = keys_of({5});
  const VmKeys wrong = keys_of({6});
  const Bytes record = sealed(right.front(), RecordType::device_state, bytes_of("state"));
  Bytes plain;
  const auto opened = open_whole(wrong, record, plain);
  ASSERT_FALSE(opened);
  EXPECT_EQ(opened.error().code, Errc::permission);
  EXPECT_THAT(opened.error().message, HasSubstr(format::key_id_text(right.front().id())));
  EXPECT_THAT(opened.error().message, HasSubstr(format::key_id_text(wrong.front().id())));
  EXPECT_TRUE(open_whole(keys_of({6, 5}), record, plain)) << "an older key still opens";
}

/// What a store without the key may do, and no more.
TEST_F(SealedRecordTest, DeadPagesAreMarkedWithoutTheKey) {
  const VmKeys keys = keys_of({5});
  const Bytes body = group_body();
  Bytes record = sealed(keys.front(), RecordType::page_group, body);
  format::set_dead_pages(record, 0b10);
  Bytes plain;
  ASSERT_TRUE(open_whole(keys, record, plain));
  EXPECT_EQ(plain, body);
  const auto group =
      format::decode_sealed_group_keys(ByteSpan(record).subspan(format::kRecordPrefixBytes));
  ASSERT_TRUE(group);
  EXPECT_EQ(group->dead_pages, 0b10u);
  format::set_dead_pages(record, 0b100);
  EXPECT_FALSE(
      format::decode_sealed_group_keys(ByteSpan(record).subspan(format::kRecordPrefixBytes)));
}

}  // namespace
}  // namespace vmshadow::crypt
