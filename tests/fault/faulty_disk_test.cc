// The disk of the tests itself: it fails, tears, rots and waits as it is told.

#include <gtest/gtest.h>

#include <cerrno>
#include <filesystem>
#include <set>

#include "io/file.h"
#include "support/faulty_file.h"
#include "support/temp_dir.h"

namespace vmshadow::test {
namespace {

class FaultyDiskTest : public testing::Test {
 protected:
  FaultyDiskTest() : file_(std::move(*files_->create(path_))) {}
  std::string contents() { return *io::read_small_file(path_, 1 << 20); }
  Status write(std::size_t bytes, io::Durability durability = io::Durability::buffered) {
    const std::string text(bytes, 'x');
    const ByteSpan all = std::as_bytes(std::span(text));
    return file_->write({&all, 1}, 0, durability);
  }
  TempDir temp_;
  const std::string path_ = temp_.file("file");
  FaultyDisk disk_;
  std::unique_ptr<io::FileSystem> files_ = disk_.file_system();
  std::unique_ptr<io::AppendFile> file_;
};

TEST_F(FaultyDiskTest, ATornWriteLeavesWholeSectors) {
  disk_.tear_at(disk_.operations(), EIO, 5);
  EXPECT_EQ(write(64 * 512).error().code, Errc::io);
  std::string text = contents();
  text.resize(64 * 512);
  std::size_t there = 0;
  for (std::size_t at = 0; at < text.size(); at += 512) {
    const std::string sector = text.substr(at, 512);
    ASSERT_TRUE(sector == std::string(512, 'x') || sector == std::string(512, '\0'));
    there += sector[0] == 'x' ? 1 : 0;
  }
  EXPECT_GT(there, 10u);
  EXPECT_LT(there, 54u);
}

TEST(FaultyDiskCrashTest, WhatIsWrittenOverIsOldOrNewSectorBySector) {
  const std::string old_text(64 * 512, 'x');
  const std::string new_text(64 * 512, 'z');
  std::set<std::string> sectors;
  bool mixed = false;
  for (std::uint64_t seed = 0; seed < 10; ++seed) {
    const TempDir temp;
    const std::string path = temp.file("file");
    FaultyDisk disk;
    const auto files = disk.file_system();
    {
      const auto file = *files->create(path);
      const ByteSpan before = std::as_bytes(std::span(old_text));
      ASSERT_TRUE(file->write({&before, 1}, 0, io::Durability::durable));
      ASSERT_TRUE(files->sync_directory(std::filesystem::path(path).parent_path()));
      const ByteSpan after = std::as_bytes(std::span(new_text));
      ASSERT_TRUE(file->write({&after, 1}, 0, io::Durability::buffered));
    }
    disk.crash(seed);
    const std::string left = *io::read_small_file(path, 1 << 20);
    ASSERT_EQ(left.size(), old_text.size());
    for (std::size_t at = 0; at < left.size(); at += 512) sectors.insert(left.substr(at, 512));
    mixed = mixed || (left != old_text && left != new_text);
  }
  EXPECT_EQ(sectors, (std::set{std::string(512, 'x'), std::string(512, 'z')}));
  EXPECT_TRUE(mixed);
}

TEST_F(FaultyDiskTest, AShortWriteKeepsItsBeginning) {
  disk_.fail_at(disk_.operations(), EIO, 700);
  EXPECT_FALSE(write(2'000));
  EXPECT_EQ(contents(), std::string(700, 'x'));
}

TEST_F(FaultyDiskTest, BitsRotUntilHealed) {
  ASSERT_TRUE(write(10));
  disk_.corrupt(path_, 8, 4, std::byte{1});
  EXPECT_EQ(contents(), "xxxxxxxxyy");
  ASSERT_TRUE(write(14, io::Durability::durable)) << "the disk says that all is well";
  EXPECT_EQ(contents(), "xxxxxxxxyyyyxx");
  disk_.heal();
  EXPECT_EQ(contents(), std::string(14, 'x'));
}

TEST_F(FaultyDiskTest, TellsOfEachOperationBeforeItHappens) {
  std::vector<FaultyDisk::OperationKind> kinds;
  disk_.on_operation([&](const FaultyDisk::Operation& operation) {
    if (operation.kind == FaultyDisk::OperationKind::write) {
      EXPECT_EQ(operation.bytes, 100u);
      EXPECT_EQ(operation.path, path_);
      EXPECT_EQ(contents(), std::string(4096, '\0'));
    }
    kinds.push_back(operation.kind);
  });
  ASSERT_TRUE(file_->preallocate(4096));
  ASSERT_TRUE(write(100, io::Durability::durable));
  using Kind = FaultyDisk::OperationKind;
  EXPECT_EQ(kinds, (std::vector{Kind::preallocate, Kind::write, Kind::sync}));
}

}  // namespace
}  // namespace vmshadow::test
