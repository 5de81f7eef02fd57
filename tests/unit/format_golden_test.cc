// The bytes of format version 3, for ever: what version 3 wrote must read the same in every later
// program. The documents' worked examples are held to the same bytes.
//
// To add a file: add it to support/golden.cc, run with --gtest_also_run_disabled_tests
// --gtest_filter='*WriteMissing*', look at the bytes, and commit them. Never change one.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>

#include "crypt/sealed_record.h"
#include "format/epoch_records.h"
#include "format/journal.h"
#include "format/skeleton.h"
#include "format/store_state.h"
#include "format/wire.h"
#include "support/golden.h"

namespace vmshadow::format {
namespace {

using Bytes = std::vector<std::byte>;

const std::string kRoot = VMSHADOW_SOURCE_ROOT;

std::string read_text(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  EXPECT_TRUE(in) << path;
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

std::string golden_path(const std::string& name) {
  return kRoot + "/tests/unit/golden/format-v4/" + name;
}

Bytes golden(const std::string& name) {
  const std::string text = read_text(golden_path(name));
  const auto bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}

bool belongs_to_a_vm(RecordType type) {
  return type != RecordType::pad && type != RecordType::mark && type != RecordType::segment_list &&
         type != RecordType::replace;
}

/// The body of a golden record whose prefix and checksums hold.
Bytes golden_body(const std::string& name, RecordType type, std::uint32_t sequence = 0) {
  const Bytes bytes = golden(name);
  const auto prefix = decode_prefix(bytes);
  EXPECT_TRUE(prefix) << name;
  if (!prefix) return {};
  EXPECT_EQ(prefix->head.type, type);
  EXPECT_EQ(prefix->head.sequence, sequence);
  if (belongs_to_a_vm(type)) {
    EXPECT_EQ(prefix->head.vm, vm_id("web1"));
    EXPECT_EQ(prefix->head.generation, Generation{3});
    EXPECT_EQ(prefix->head.epoch, Epoch{42});
  }
  Bytes body(bytes.begin() + kRecordPrefixBytes, bytes.end());
  EXPECT_TRUE(check_body(*prefix, body));
  return body;
}

TEST(GoldenTest, EncodingGivesTheseBytes) {
  for (const auto& [name, bytes] : test::golden_files()) EXPECT_EQ(golden(name), bytes) << name;
}

TEST(GoldenTest, DISABLED_WriteMissing) {
  for (const auto& [name, bytes] : test::golden_files()) {
    if (std::filesystem::exists(golden_path(name))) continue;
    std::ofstream out(golden_path(name), std::ios::binary);
    out.write(reinterpret_cast<const char*>(bytes.data()),
              static_cast<std::streamsize>(bytes.size()));
  }
}

TEST(GoldenTest, EpochRecordsDecode) {
  const Bytes machine_body = golden_body("machine.bin", RecordType::machine);
  const auto machine = decode_machine(machine_body);
  ASSERT_TRUE(machine);
  EXPECT_EQ(machine->json, R"({"machine":"pc-q35-7.2"})");
  EXPECT_EQ(machine->configuration.size(), 4u);
  ASSERT_EQ(machine->layout.blocks.size(), 2u);
  EXPECT_EQ(machine->layout.blocks[0], (RamBlock{"pc.ram", 16 * kPageBytes}));
  EXPECT_EQ(machine->layout.ram_section_version, 4u);

  const Bytes raw_body = golden_body("page_group_raw.bin", RecordType::page_group, 1);
  const auto raw = decode_page_group(raw_body);
  ASSERT_TRUE(raw);
  EXPECT_EQ(raw->codec, Codec::raw);
  EXPECT_EQ(raw->keys[0], (PageKey{BlockIndex{0}, PageNumber{5}}));
  EXPECT_EQ(raw->payload[250], std::byte{250});
  EXPECT_EQ(raw->payload[251], std::byte{0});

  const Bytes lz4_body = golden_body("page_group_lz4.bin", RecordType::page_group, 2);
  const auto lz4 = decode_page_group(lz4_body);
  ASSERT_TRUE(lz4);
  EXPECT_EQ(lz4->codec, Codec::lz4);
  EXPECT_EQ(lz4->payload.size(), 26u);

  const auto runs = decode_zero_pages(golden_body("zero_pages.bin", RecordType::zero_pages, 3));
  ASSERT_TRUE(runs);
  ASSERT_EQ(runs->size(), 2u);
  EXPECT_EQ((*runs)[0].first, (PageKey{BlockIndex{0}, PageNumber{8}}));
  EXPECT_EQ((*runs)[1].count, 2u);

  EXPECT_EQ(golden_body("device_state.bin", RecordType::device_state, 4),
            Bytes(3, std::byte{0x77}));

  const auto end = decode_epoch_end(golden_body("epoch_end.bin", RecordType::epoch_end, 5));
  ASSERT_TRUE(end);
  EXPECT_TRUE(end->full);
  EXPECT_EQ(end->record_count, 5u);
  EXPECT_EQ(end->stored_pages, 8u);
  EXPECT_EQ(end->zero_pages, 6u);
  EXPECT_EQ(end->cut_wall, WallTime{1'700'000'000'000'000'000});
}

TEST(GoldenTest, SealedRecordsOpen) {
  const Bytes bytes = test::golden_key();
  const auto secret = crypt::SecretKey::copy_of(ByteSpan(bytes).first<crypt::kKeyBytes>());
  ASSERT_TRUE(secret);
  crypt::VmKeys keys;
  keys.push_back(*crypt::VmKey::derive(*secret, vm_id("web1")));
  for (const auto& [name, plain_name] :
       {std::pair{"sealed_machine.bin", "machine.bin"},
        std::pair{"sealed_page_group.bin", "page_group_lz4.bin"},
        std::pair{"sealed_device_state.bin", "device_state.bin"}}) {
    const Bytes record = golden(name);
    const auto prefix = decode_prefix(record);
    ASSERT_TRUE(prefix) << name;
    const auto plain_prefix = decode_prefix(golden(plain_name));
    ASSERT_TRUE(plain_prefix);
    EXPECT_EQ(plain_type(prefix->head.type), plain_prefix->head.type);
    const ByteSpan body = ByteSpan(record).subspan(kRecordPrefixBytes);
    ASSERT_TRUE(check_body(*prefix, body));
    Bytes plain;
    const auto opened = crypt::open_record(keys, *prefix, body, plain);
    ASSERT_TRUE(opened) << opened.error().message;
    EXPECT_EQ(plain, golden_body(plain_name, plain_prefix->head.type, plain_prefix->head.sequence));
  }
}

TEST(GoldenTest, JournalRecordsDecode) {
  const JournalPosition durable{SegmentId{1}, SegmentOffset{4096}};
  const auto commit = decode_commit(golden_body("commit.bin", RecordType::commit));
  ASSERT_TRUE(commit);
  EXPECT_EQ(commit->durable, durable);
  EXPECT_EQ(commit->chain,
            decode_epoch_end(golden_body("epoch_end.bin", RecordType::epoch_end, 5))->chain);
  const auto grant = decode_grant(golden_body("grant.bin", RecordType::grant));
  ASSERT_TRUE(grant);
  EXPECT_EQ(grant->vm_name, "web1");
  EXPECT_EQ(grant->durable, durable);
  const auto pad = decode_pad(golden_body("pad.bin", RecordType::pad));
  ASSERT_TRUE(pad);
  EXPECT_EQ(pad->durable, durable);
  const auto mark = decode_mark(golden_body("mark.bin", RecordType::mark));
  ASSERT_TRUE(mark);
  EXPECT_EQ(mark->begin, durable);
  EXPECT_EQ(mark->salt[15], std::byte{0x2f});
  EXPECT_EQ(mark->durable, durable);
}

TEST(GoldenTest, WhatAStoreKeepsDecodes) {
  const JournalPosition durable{SegmentId{1}, SegmentOffset{4096}};
  const auto state = decode_vm_state(golden_body("vm_state.bin", RecordType::vm_state));
  ASSERT_TRUE(state);
  EXPECT_EQ(state->version, 7u);
  EXPECT_EQ(state->vm_name, "web1");
  EXPECT_EQ(state->next_epoch, Epoch{43});
  EXPECT_EQ(state->window_s, 600u);
  EXPECT_EQ(state->minutely_s, 3600u);
  EXPECT_EQ(state->hourly_s, 86'400u);
  EXPECT_EQ(state->daily_s, 2'592'000u);
  EXPECT_FALSE(state->own_policy);
  EXPECT_EQ(state->quota_bytes, 0u);
  EXPECT_EQ(state->kept, (std::vector<KeptRange>{{Epoch{12}, Epoch{12}}, {Epoch{30}, Epoch{42}}}));
  EXPECT_EQ(state->pins, std::vector<Epoch>{Epoch{12}});
  EXPECT_EQ(state->durable, durable);

  const SegmentEntry archive{SegmentId{2}, 1'048'576, SegmentKind::archive};
  const auto list = decode_segment_list(golden_body("segment_list.bin", RecordType::segment_list));
  ASSERT_TRUE(list);
  EXPECT_EQ(*list, (SegmentList{{archive, {SegmentId{3}, 0, SegmentKind::journal}}}));
  const auto replace = decode_replace(golden_body("replace.bin", RecordType::replace));
  ASSERT_TRUE(replace);
  EXPECT_EQ(*replace, (Replace{{SegmentId{1}}, {archive}, durable}));

  const auto epoch =
      decode_archived_epoch(golden_body("archived_epoch.bin", RecordType::archived_epoch));
  ASSERT_TRUE(epoch);
  EXPECT_EQ(*epoch, (ArchivedEpoch{WallTime{1'700'000'000'004'000'000},
                                   WallTime{1'700'000'000'000'000'000}, 8, 5000, 3, true}));
  const auto loss = decode_loss(golden_body("loss.bin", RecordType::loss));
  ASSERT_TRUE(loss);
  EXPECT_EQ(*loss, (Loss{{SegmentId{1}, SegmentOffset{4096}},
                         120,
                         LossKind::own,
                         "record body fails its checksum"}));
}

/// What a walk over a segment's records finds.
struct Found {
  std::uint64_t offset{};
  std::uint64_t bytes{};
  RecordType type{};
  bool operator==(const Found&) const = default;
};

/// The records of the golden segment; whole, aligned, and with zero bytes between them.
std::vector<Found> walk(const Bytes& segment) {
  std::vector<Found> found;
  std::uint64_t offset = kSegmentHeadBytes;
  while (offset + kRecordPrefixBytes <= segment.size()) {
    const ByteSpan rest = ByteSpan(segment).subspan(offset);
    if (load<le32>(rest.data()) != kRecordMagic) break;
    const auto prefix = decode_prefix(rest);
    EXPECT_TRUE(prefix) << offset;
    if (!prefix) break;
    EXPECT_TRUE(check_body(*prefix, rest.subspan(kRecordPrefixBytes, prefix->body_bytes)));
    const std::uint64_t bytes = kRecordPrefixBytes + prefix->body_bytes;
    found.push_back({offset, bytes, prefix->head.type});
    for (offset += bytes; offset % kRecordAlignment != 0; ++offset) {
      EXPECT_EQ(segment[offset], std::byte{0}) << offset;
    }
  }
  for (; offset < segment.size(); ++offset) EXPECT_EQ(segment[offset], std::byte{0}) << offset;
  return found;
}

TEST(GoldenTest, TheSegmentDecodesFromItsEnd) {
  const Bytes segment = golden("segment.bin");
  const auto head = decode_segment_head(segment);
  ASSERT_TRUE(head);
  EXPECT_EQ(head->segment, SegmentId{1});
  EXPECT_EQ(head->kind, SegmentKind::journal);
  EXPECT_EQ(head->created_wall, WallTime{1'700'000'000'004'000'000});
  EXPECT_EQ(head->store[15], std::byte{15});
  EXPECT_EQ(head->salt[15], std::byte{0x2f});

  ASSERT_EQ(segment.size(), 20'480u);
  const ByteSpan last = ByteSpan(segment).subspan(segment.size() - kSealBlockBytes);
  const auto seal = decode_seal(last.subspan(kRecordPrefixBytes, sizeof(SealBytes)));
  ASSERT_TRUE(seal);
  EXPECT_EQ(seal->segment, SegmentId{1});
  EXPECT_EQ(seal->skeleton_offset, 12'288u);
  EXPECT_EQ(seal->skeleton_count, 1u);
  EXPECT_EQ(seal->record_count, 8u);
  const ByteSpan skeleton = ByteSpan(segment).subspan(seal->skeleton_offset);
  const auto prefix = decode_prefix(skeleton);
  ASSERT_TRUE(prefix);
  EXPECT_EQ(extend_chain(0, prefix->prefix_checksum), seal->skeleton_chain);

  std::vector<Found> entries;
  const auto body = skeleton.subspan(kRecordPrefixBytes, prefix->body_bytes);
  ASSERT_TRUE(for_each_skeleton_entry(body, [&](const SkeletonEntry& entry) {
    entries.push_back(
        {entry.offset, kRecordPrefixBytes + entry.prefix.body_bytes, entry.prefix.head.type});
  }));
  std::vector<Found> records = walk(segment);
  std::erase_if(records, [&](const Found& f) {
    return f.offset >= seal->skeleton_offset || f.type == RecordType::mark;
  });
  EXPECT_EQ(entries, records);
  // The mark is that of the batch before it.
  const auto mark = decode_mark(golden_body("mark.bin", RecordType::mark));
  ASSERT_TRUE(mark);
  EXPECT_EQ(mark->salt, head->salt);
  EXPECT_EQ(mark->chain, chain_records(0, ByteSpan(segment).subspan(4096, 9064 - 4096)));
}

TEST(GoldenTest, WireRecordsDecode) {
  const auto hello = decode_hello(golden_body("hello.bin", RecordType::hello));
  ASSERT_TRUE(hello);
  EXPECT_EQ(*hello, (Hello{1, 1, 0, 4096, "web1"}));
  const auto welcome = decode_welcome(golden_body("welcome.bin", RecordType::welcome));
  ASSERT_TRUE(welcome);
  EXPECT_EQ(*welcome, (Welcome{1, 0, Generation{3}, Epoch{42}}));
  const auto ack = decode_ack(golden_body("ack.bin", RecordType::ack));
  ASSERT_TRUE(ack);
  EXPECT_EQ(ack->sync.count(), 1500);
  const auto refusal = decode_refusal(golden_body("refusal.bin", RecordType::refusal));
  ASSERT_TRUE(refusal);
  EXPECT_EQ(*refusal, (Refusal{Errc::in_use, "VM is taken"}));
  const auto hashes = decode_base_hashes(golden_body("base_hashes.bin", RecordType::base_hashes));
  ASSERT_TRUE(hashes);
  EXPECT_EQ(
      *hashes,
      (BaseHashes{{{{BlockIndex{0}, PageNumber{6}}, {0x0123456789abcdef, 0xfedcba9876543210}}}}));
  const auto end = decode_base_end(golden_body("base_end.bin", RecordType::base_end));
  ASSERT_TRUE(end);
  EXPECT_EQ(*end, (BaseEnd{1, {}}));
  EXPECT_TRUE(golden_body("ping.bin", RecordType::ping).empty());
}

/// The bytes of the ```hex block that follows "<!-- bytes of NAME -->"; ';' starts a comment.
Bytes example(const std::string& document, const std::string& name) {
  const std::string mark = "<!-- bytes of " + name + " -->";
  const std::size_t at = document.find(mark);
  EXPECT_NE(at, std::string::npos) << "the document has no example of " << name;
  if (at == std::string::npos) return {};
  const std::size_t begin = document.find("```hex\n", at) + 7;
  std::istringstream lines(document.substr(begin, document.find("```", begin) - begin));
  Bytes bytes;
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line.substr(0, line.find(';')));
    for (unsigned byte = 0; words >> std::hex >> byte;) bytes.push_back(std::byte(byte));
  }
  return bytes;
}

/// The first `count` bytes of `bytes` from `offset`.
Bytes cut(const Bytes& bytes, std::uint64_t offset, std::size_t count) {
  const ByteSpan span = ByteSpan(bytes).subspan(offset, count);
  return {span.begin(), span.end()};
}

TEST(GoldenTest, TheDocumentsShowTheseBytes) {
  const std::string store = read_text(kRoot + "/docs/store-format.md");
  for (const char* name : {"grant.bin", "commit.bin", "pad.bin", "mark.bin", "zero_pages.bin",
                           "page_group_lz4.bin", "vm_state.bin", "segment_list.bin", "replace.bin",
                           "archived_epoch.bin", "loss.bin", "sealed_page_group.bin"}) {
    EXPECT_EQ(example(store, name), golden(name)) << name;
  }
  const Bytes segment = golden("segment.bin");
  EXPECT_EQ(example(store, "segment head"), cut(segment, 0, sizeof(SegmentHeadBytes)));
  const std::size_t first_entry = sizeof(SkeletonEntryBytes) + sizeof(GrantBytes) + 4;
  EXPECT_EQ(example(store, "skeleton, first entry"),
            cut(segment, 12'288, kRecordPrefixBytes + first_entry));
  EXPECT_EQ(example(store, "seal"), cut(segment, 16'384, kRecordPrefixBytes + sizeof(SealBytes)));
  const std::string wire = read_text(kRoot + "/docs/wire-format.md");
  for (const char* name : {"hello.bin", "welcome.bin", "device_state.bin", "epoch_end.bin",
                           "ack.bin", "refusal.bin", "base_hashes.bin", "base_end.bin"}) {
    EXPECT_EQ(example(wire, name), golden(name)) << name;
  }
}

TEST(GoldenTest, TheDocumentLaysOutTheSegment) {
  const std::map<std::string, RecordType> types = {{"grant", RecordType::grant},
                                                   {"machine", RecordType::machine},
                                                   {"page_group", RecordType::page_group},
                                                   {"zero_pages", RecordType::zero_pages},
                                                   {"device_state", RecordType::device_state},
                                                   {"epoch_end", RecordType::epoch_end},
                                                   {"commit", RecordType::commit},
                                                   {"pad", RecordType::pad},
                                                   {"mark", RecordType::mark},
                                                   {"skeleton", RecordType::skeleton},
                                                   {"seal", RecordType::seal}};
  const std::string store = read_text(kRoot + "/docs/store-format.md");
  const std::size_t at = store.find("<!-- layout of segment.bin -->");
  ASSERT_NE(at, std::string::npos);
  std::istringstream lines(store.substr(at, store.find("\n\n", at) - at));
  std::vector<Found> shown;
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string bar, type;
    std::uint64_t offset = 0, bytes = 0;
    if (!(words >> bar >> offset >> bar >> bytes >> bar >> type) || offset == 0) continue;
    ASSERT_TRUE(types.contains(type)) << line;
    shown.push_back({offset, bytes, types.at(type)});
  }
  EXPECT_EQ(shown, walk(golden("segment.bin")));
}

}  // namespace
}  // namespace vmshadow::format
