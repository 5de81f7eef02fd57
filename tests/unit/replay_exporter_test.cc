#include <elf.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "replay/exporter.h"
#include "replay/output_file.h"
#include "support/memory_epoch_image.h"
#include "support/migration_stream_parser.h"
#include "support/temp_dir.h"

namespace vmshadow::replay {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::MemoryEpochImage;
using testing::page_of;

constexpr std::uint64_t kRamPages = 1024;

MemoryEpochImage export_image() {
  MemoryEpochImage image;
  image.info_.epoch = Epoch{12};
  image.info_.generation = Generation{3};
  image.machine_.json = R"({"machine_type":"pc-i440fx-7.2","argv":["qemu"]})";
  image.machine_.configuration = {std::byte{0}, std::byte{0},   std::byte{0},
                                  std::byte{2}, std::byte{'p'}, std::byte{'c'}};
  image.machine_.layout.blocks = {{"pc.ram", kRamPages * kPageBytes},
                                  {"/rom@etc/acpi/tables", 2 * kPageBytes},
                                  {"pc.bios", 2 * kPageBytes}};
  image.device_state_ = {std::byte{4}, std::byte{9}, std::byte{0}};
  image.pages_[{BlockIndex{0}, PageNumber{0}}] = page_of(1);
  image.pages_[{BlockIndex{0}, PageNumber{1}}] = page_of(2);
  image.pages_[{BlockIndex{0}, PageNumber{5}}] = page_of(0);
  image.pages_[{BlockIndex{0}, PageNumber{kRamPages - 1}}] = page_of(3);
  image.pages_[{BlockIndex{1}, PageNumber{1}}] = page_of(4);
  image.pages_[{BlockIndex{2}, PageNumber{0}}] = page_of(5);
  return image;
}

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file) << path;
  return {std::istreambuf_iterator<char>(file), {}};
}

std::vector<std::string> names_in(const std::string& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

/// The image's block as one string.
std::string block_bytes(const MemoryEpochImage& image, std::uint16_t block) {
  std::string bytes(image.machine_.layout.blocks[block].bytes, '\0');
  for (const auto& [place, page] : image.pages_) {
    if (place.first.value == block) {
      std::memcpy(bytes.data() + place.second.value * kPageBytes, page.data(), kPageBytes);
    }
  }
  return bytes;
}

class ExporterTest : public ::testing::Test {
 protected:
  Result<ExportReport> run(ExportFormat format, const std::string& name, bool replace = false) {
    ExportOptions options;
    options.replace = replace;
    return export_epoch(image_, "web1", format, path(name), options);
  }
  std::string path(const std::string& name) const { return folder_.file(name); }

  test::TempDir folder_;
  MemoryEpochImage image_ = export_image();
};

TEST_F(ExporterTest, RawIsAFileForEachBlockAndTheRest) {
  const auto report = run(ExportFormat::raw, "out/");
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_THAT(names_in(path("out")),
              ElementsAre("%2From%40etc%2Facpi%2Ftables.ram", "device_state.bin", "machine.json",
                          "pc.bios.ram", "pc.ram.ram"));
  EXPECT_TRUE(read_file(path("out/pc.ram.ram")) == block_bytes(image_, 0));
  EXPECT_TRUE(read_file(path("out/%2From%40etc%2Facpi%2Ftables.ram")) == block_bytes(image_, 1));
  EXPECT_EQ(read_file(path("out/machine.json")), image_.machine_.json);
  EXPECT_EQ(read_file(path("out/device_state.bin")), std::string("\4\11\0", 3));
  EXPECT_EQ(report->pages, 5u);
  EXPECT_EQ(report->zero_pages, kRamPages + 4 - 5);
  EXPECT_EQ(names_in(folder_.path()).size(), 1u);
  struct stat status {};
  ASSERT_EQ(::stat(path("out/pc.ram.ram").c_str(), &status), 0);
  EXPECT_LT(status.st_blocks * 512, 64 * 1024) << "zero pages are holes";
  EXPECT_EQ(status.st_mode & 0777, 0600u);
  ASSERT_EQ(::stat(path("out").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0700u);
}

template <class Struct>
Struct struct_at(const std::string& bytes, std::size_t offset) {
  Struct value;
  EXPECT_LE(offset + sizeof value, bytes.size());
  std::memcpy(&value, bytes.data() + offset, sizeof value);
  return value;
}

TEST_F(ExporterTest, TheCoreHasASegmentForEachStretchOfGuestMemory) {
  // 1 MiB of 4 lies from 4 GiB on.
  image_.machine_.json =
      R"({"machine_type":"pc-i440fx-7.2","argv":["qemu","-M","pc,max-ram-below-4g=3M"]})";
  const auto report = run(ExportFormat::elf, "core");
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_THAT(report->left_out, ElementsAre("/rom@etc/acpi/tables"));
  const std::string core = read_file(path("core"));
  EXPECT_EQ(core.size(), report->files.front().bytes);
  const auto header = struct_at<Elf64_Ehdr>(core, 0);
  EXPECT_EQ(std::memcmp(header.e_ident, ELFMAG, SELFMAG), 0);
  EXPECT_EQ(header.e_type, ET_CORE);
  EXPECT_EQ(header.e_machine, EM_X86_64);
  ASSERT_EQ(header.e_phnum, 4);

  const auto note = struct_at<Elf64_Phdr>(core, header.e_phoff);
  EXPECT_EQ(note.p_type, PT_NOTE);
  EXPECT_THAT(core.substr(note.p_offset, note.p_filesz),
              ::testing::AllOf(HasSubstr("VMSHADOW"), HasSubstr("VM web1 epoch 12")));
  struct Expected {
    std::uint64_t address;
    std::string bytes;
  };
  const std::string ram = block_bytes(image_, 0);
  const Expected expected[] = {{0, ram.substr(0, 3 << 20)},
                               {0x100000000 - 2 * kPageBytes, block_bytes(image_, 2)},
                               {0x100000000, ram.substr(3 << 20)}};
  for (std::size_t i = 0; i < 3; ++i) {
    const auto load = struct_at<Elf64_Phdr>(core, header.e_phoff + (i + 1) * sizeof(Elf64_Phdr));
    EXPECT_EQ(load.p_type, PT_LOAD);
    EXPECT_EQ(load.p_paddr, expected[i].address);
    EXPECT_EQ(load.p_vaddr, expected[i].address);
    EXPECT_EQ(load.p_filesz, load.p_memsz);
    EXPECT_EQ(load.p_offset % kPageBytes, 0u);
    EXPECT_TRUE(core.substr(load.p_offset, load.p_filesz) == expected[i].bytes) << i;
  }
}

TEST_F(ExporterTest, TheMigrationFileIsTheWholeStream) {
  const auto report = run(ExportFormat::migration, "file");
  ASSERT_TRUE(report) << report.error().message;
  const std::string file = read_file(path("file"));
  EXPECT_EQ(file.size(), report->files.front().bytes);
  const auto bytes = std::as_bytes(std::span(file));
  const std::vector<std::byte> stream(bytes.begin(), bytes.end());
  const auto parsed = testing::MigrationStreamParser(stream).parse();
  EXPECT_EQ(parsed.layout, image_.machine_.layout);
  EXPECT_EQ(parsed.device_state, image_.device_state_);
  EXPECT_EQ(parsed.pages.size(), kRamPages + 4);
  EXPECT_EQ(parsed.pages.at({"pc.ram", kPageBytes})[9], std::byte{2});
}

TEST_F(ExporterTest, WhatExistsIsKeptUnlessToldOtherwise) {
  for (const auto format : {ExportFormat::elf, ExportFormat::migration}) {
    std::ofstream(path("file")) << "mine";
    const auto refused = run(format, "file");
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, Errc::already_exists);
    EXPECT_THAT(refused.error().message, HasSubstr("--force"));
    EXPECT_EQ(read_file(path("file")), "mine");
    const auto replaced = run(format, "file", true);
    ASSERT_TRUE(replaced) << replaced.error().message;
    EXPECT_NE(read_file(path("file")), "mine");
    fs::remove(path("file"));
  }
  ASSERT_TRUE(run(ExportFormat::raw, "out"));
  EXPECT_EQ(run(ExportFormat::raw, "out").error().code, Errc::already_exists);
  image_.machine_.json = R"({"name":"new"})";
  const auto replaced = run(ExportFormat::raw, "out", true);
  ASSERT_TRUE(replaced) << replaced.error().message;
  EXPECT_EQ(read_file(path("out/machine.json")), image_.machine_.json);
  EXPECT_THAT(names_in(folder_.path()), ElementsAre("out"));
}

TEST_F(ExporterTest, ForceReplacesNothingOfAnotherKind) {
  fs::create_directory(path("folder"));
  std::ofstream(path("folder/thesis")) << "years";
  const auto folder = run(ExportFormat::raw, "folder", true);
  ASSERT_FALSE(folder);
  EXPECT_THAT(folder.error().message, HasSubstr("not the folder of an earlier export"));
  EXPECT_EQ(read_file(path("folder/thesis")), "years");
  const auto file = run(ExportFormat::elf, "folder", true);
  ASSERT_FALSE(file);
  EXPECT_THAT(file.error().message, HasSubstr("no regular file"));
  EXPECT_THAT(names_in(folder_.path()), ElementsAre("folder"));
  EXPECT_EQ(run(ExportFormat::elf, "..").error().code, Errc::invalid_argument);
  EXPECT_EQ(run(ExportFormat::elf, "none/core").error().code, Errc::not_found);
}

TEST_F(ExporterTest, AnExportThatIsStoppedLeavesNothing) {
  for (const auto format : {ExportFormat::raw, ExportFormat::elf, ExportFormat::migration}) {
    std::uint64_t last = 0;
    std::uint64_t calls = 0;
    ExportOptions options;
    options.on_progress = [&](std::uint64_t done, std::uint64_t total) -> Status {
      EXPECT_GE(done, last);
      EXPECT_LE(done, total);
      last = done;
      if (++calls == 1) return fail(Errc::cancelled, "enough");
      return {};
    };
    const auto stopped = export_epoch(image_, "web1", format, path("out"), options);
    ASSERT_FALSE(stopped);
    EXPECT_EQ(stopped.error().code, Errc::cancelled);
    EXPECT_TRUE(names_in(folder_.path()).empty());
  }
}

TEST_F(ExporterTest, AnImageThatContradictsItselfLeavesNothing) {
  image_.pages_[{BlockIndex{2}, PageNumber{2}}] = page_of(1);
  for (const auto format : {ExportFormat::raw, ExportFormat::elf, ExportFormat::migration}) {
    const auto report = run(format, "out");
    ASSERT_FALSE(report);
    EXPECT_EQ(report.error().code, Errc::corrupt);
    EXPECT_THAT(report.error().message, HasSubstr("page 2 of 'pc.bios'"));
    EXPECT_TRUE(names_in(folder_.path()).empty());
  }
}

TEST_F(ExporterTest, RawHasAnImageOfEachDiskAsLongAsTheDisk) {
  image_.machine_.disks = {{"pc.ram", 2 * kPageBytes + 512}};
  image_.pages_[{BlockIndex{3}, PageNumber{0}}] = page_of(6);
  image_.pages_[{BlockIndex{3}, PageNumber{2}}] = page_of(7);
  const auto report = run(ExportFormat::raw, "out");
  ASSERT_TRUE(report) << report.error().message;
  const std::string disk = read_file(path("out/pc.ram.img"));
  EXPECT_TRUE(disk == std::string(kPageBytes, '\6') + std::string(kPageBytes, '\0') +
                          std::string(512, '\7'));
  EXPECT_TRUE(read_file(path("out/pc.ram.ram")) == block_bytes(image_, 0));
  // A core and a stream are of the RAM alone.
  ASSERT_TRUE(run(ExportFormat::elf, "core"));
  ASSERT_TRUE(run(ExportFormat::migration, "stream"));
}

std::string ram_file(std::string_view block_name) {
  return file_name_of_block({block_name, 0, 0, false});
}

TEST(FileNameOfBlockTest, IsSafeAndUnambiguous) {
  EXPECT_EQ(file_name_of_block({"../vda", 0, 0, true}), "%2E.%2Fvda.img");
  EXPECT_EQ(ram_file("pc.ram"), "pc.ram.ram");
  EXPECT_EQ(ram_file("/rom@etc/x"), "%2From%40etc%2Fx.ram");
  EXPECT_EQ(ram_file(".."), "%2E..ram");
  EXPECT_EQ(ram_file("a%2F"), "a%252F.ram");
  EXPECT_EQ(ram_file("\xff"), "%FF.ram");
}

TEST(SparseWriterTest, PiecesMayComeInAnyOrder) {
  const test::TempDir folder;
  auto place = OutputPlace::prepare(folder.file("x"), OutputPlace::Kind::file, false);
  ASSERT_TRUE(place) << place.error().message;
  auto writer = place->open();
  ASSERT_TRUE(writer);
  const auto bytes = [](std::string_view text) { return std::as_bytes(std::span(text)); };
  ASSERT_TRUE(writer->set_bytes(12));
  ASSERT_TRUE(writer->write(6, bytes("cd")));
  ASSERT_TRUE(writer->write(8, bytes("ef")));
  ASSERT_TRUE(writer->write(1, bytes("ab")));
  ASSERT_TRUE(writer->finish());
  EXPECT_FALSE(fs::exists(folder.file("x"))) << "not before it is published";
  // Somebody else takes the name meanwhile.
  std::ofstream(folder.file("x")) << "other";
  const auto late = place->publish();
  ASSERT_FALSE(late);
  EXPECT_EQ(late.error().code, Errc::already_exists);
  EXPECT_EQ(read_file(folder.file("x")), "other");
  fs::remove(folder.file("x"));
  ASSERT_TRUE(place->publish());
  EXPECT_EQ(read_file(folder.file("x")), std::string("\0ab\0\0\0cdef\0\0", 12));
}

}  // namespace
}  // namespace vmshadow::replay
