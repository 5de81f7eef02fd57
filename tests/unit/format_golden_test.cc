// The bytes of format version 2, for ever: what version 2 wrote must read the same in every later
// program. The documents' worked examples are held to the same bytes.
//
// To add a file: add it to support/golden.cc, run with --gtest_also_run_disabled_tests
// --gtest_filter='*WriteMissing*', look at the bytes, and commit them. Never change one.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "format/epoch_records.h"
#include "format/journal.h"
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
  return kRoot + "/tests/unit/golden/format-v2/" + name;
}

Bytes golden(const std::string& name) {
  const std::string text = read_text(golden_path(name));
  const auto bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}

/// The body of a golden record whose prefix and checksums hold.
Bytes golden_body(const std::string& name, RecordType type, std::uint32_t sequence = 0) {
  const Bytes bytes = golden(name);
  const auto prefix = decode_prefix(bytes);
  EXPECT_TRUE(prefix) << name;
  if (!prefix) return {};
  EXPECT_EQ(prefix->head.type, type);
  EXPECT_EQ(prefix->head.sequence, sequence);
  if (type != RecordType::pad) {
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
  const auto head = decode_segment_head(golden("segment.bin"));
  ASSERT_TRUE(head);
  EXPECT_EQ(head->segment, SegmentId{1});
  EXPECT_EQ(head->store[15], std::byte{15});
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

TEST(GoldenTest, TheDocumentsShowTheseBytes) {
  const std::string store = read_text(kRoot + "/docs/store-format.md");
  for (const char* name : {"grant.bin", "commit.bin", "pad.bin", "zero_pages.bin"}) {
    EXPECT_EQ(example(store, name), golden(name)) << name;
  }
  Bytes head = golden("segment.bin");
  head.resize(sizeof(SegmentHeadBytes));
  EXPECT_EQ(example(store, "segment head"), head);
  const std::string wire = read_text(kRoot + "/docs/wire-format.md");
  for (const char* name : {"hello.bin", "welcome.bin", "device_state.bin", "epoch_end.bin",
                           "ack.bin", "refusal.bin"}) {
    EXPECT_EQ(example(wire, name), golden(name)) << name;
  }
}

}  // namespace
}  // namespace vmshadow::format
