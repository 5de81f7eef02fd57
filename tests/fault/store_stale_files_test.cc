// What a start may unlink and what it must keep when the newest segment is damaged, and what in a
// full segment is whole but was not written there.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <spdlog/spdlog.h>

#include <filesystem>
#include <fstream>

#include "format/journal.h"
#include "io/file.h"
#include "store/reader.h"
#include "store/segment_scanner.h"
#include "store/store.h"
#include "store/verifier.h"
#include "support/faulty_file.h"
#include "support/manual_clock.h"
#include "support/store_model.h"
#include "support/temp_dir.h"

namespace vmshadow::store {
namespace {

using format::RecordType;
using test::EpochMaker;
using testing::HasSubstr;
using FileBytes = std::vector<std::byte>;

class StaleFilesTest : public testing::Test {
 protected:
  StaleFilesTest() {
    spdlog::set_level(spdlog::level::off);
    options_.log.room_bytes_min = 0;
    options_.log.spares_max = 0;
    options_.retention = {std::chrono::seconds(60), std::chrono::seconds(0),
                          std::chrono::seconds(0), std::chrono::seconds(0)};
    options_.background_maintenance = false;
  }
  ~StaleFilesTest() override { spdlog::set_level(spdlog::level::info); }

  std::unique_ptr<Store> open(const std::string& path) {
    auto store = Store::open(
        path, clock_, [] { return io::make_file_system(io::FileBackend::syscalls); }, options_);
    EXPECT_TRUE(store) << store.error().message;
    return store ? std::move(*store) : nullptr;
  }
  void ship(Store& store, int epochs) {
    auto session = store.open_session("web", "a");
    ASSERT_TRUE(session);
    for (int i = 0; i < epochs; ++i) {
      const std::uint64_t n = (*session)->next_epoch().value;
      ASSERT_TRUE(model_.ship(**session, maker_,
                              maker_.make((*session)->generation(), Epoch{n}, i == 0,
                                          {{n % 3, n + 1}, {5, 0}, {6, n + 50}}, 2)));
    }
  }
  /// The store as it is now, as if its process had been killed.
  void copy_to(const std::string& path) {
    std::filesystem::remove_all(path);
    std::filesystem::create_directories(path + "/segments");
    std::filesystem::copy(dir_ + "/VMSHADOW-STORE", path);
    std::filesystem::copy(dir_ + "/segments", path + "/segments");
  }
  static std::string file(const std::string& store, std::uint64_t id, const char* suffix = "seg") {
    return fmt::format("{}/segments/{:016x}.{}", store, id, suffix);
  }
  static FileBytes read(const std::string& path) {
    const auto fd = io::open_for_reading(path);
    EXPECT_TRUE(fd) << fd.error().message;
    FileBytes bytes(*io::file_bytes(fd->get()));
    EXPECT_TRUE(io::read_at(fd->get(), 0, bytes));
    return bytes;
  }
  static void write(const std::string& path, std::uint64_t offset, ByteSpan bytes) {
    std::fstream out(path, std::ios::in | std::ios::out | std::ios::binary);
    out.seekp(static_cast<std::streamoff>(offset));
    out.write(reinterpret_cast<const char*>(bytes.data()),
              static_cast<std::streamsize>(bytes.size()));
    EXPECT_TRUE(out);
  }
  /// The records of a type in a segment: where they are, and their bytes.
  static std::vector<std::pair<std::uint64_t, FileBytes>> records(const std::string& path,
                                                                  RecordType type) {
    const FileBytes bytes = read(path);
    const MemorySource source(bytes);
    SegmentScanner scanner(source, format::kSegmentHeadBytes);
    std::vector<std::pair<std::uint64_t, FileBytes>> found;
    while (true) {
      const ScanItem item = scanner.next();
      if (std::holds_alternative<EndOfSegment>(item)) return found;
      const auto* record = std::get_if<GoodRecord>(&item);
      if (record == nullptr || record->prefix.head.type != type) continue;
      const auto begin = bytes.begin() + static_cast<std::ptrdiff_t>(record->offset);
      found.emplace_back(
          record->offset,
          FileBytes(begin, begin + static_cast<std::ptrdiff_t>(format::kRecordPrefixBytes +
                                                               record->prefix.body_bytes)));
    }
  }
  /// The record with its head and body as `change` makes them, whole again.
  template <class Change>
  static FileBytes changed(const FileBytes& record, const Change& change) {
    auto prefix = format::decode_prefix(record);
    EXPECT_TRUE(prefix);
    FileBytes body(record.begin() + format::kRecordPrefixBytes, record.end());
    change(prefix->head, body);
    FileBytes out;
    format::append_record(out, prefix->head, body);
    EXPECT_EQ(out.size(), record.size());
    return out;
  }

  test::TempDir temp_{test::TempDir::Where::memory};
  const std::string dir_ = temp_.file("store");
  const std::string copy_ = temp_.file("copy");
  test::ManualClock clock_{system_clock().wall()};
  StoreOptions options_;
  EpochMaker maker_{"web", 8};
  test::StoreModel model_;
};

TEST_F(StaleFilesTest, ASegmentIsKnownByItsMarksWithoutAHead) {
  auto store = open(dir_);
  ship(*store, 4);
  // All that says what it is at its front: head, segment_list, the first mark.
  for (const std::size_t front : {std::size_t{5'000}, std::size_t{8'192}}) {
    copy_to(copy_);
    write(file(copy_, 1), 0, FileBytes(front, std::byte{0xff}));
    for (int start = 0; start < 2; ++start) {
      const auto again = open(copy_);
      ASSERT_NE(again, nullptr);
      EXPECT_FALSE(again->damage().empty());
      EXPECT_EQ(model_.check(*again->reader()), "") << "front " << front << ", start " << start;
    }
    EXPECT_TRUE(std::filesystem::exists(file(copy_, 1)));
    EXPECT_FALSE(std::filesystem::exists(file(copy_, 1, "aside")));
  }
}

TEST_F(StaleFilesTest, AFileWithoutAHeadIsNeverUnlinked) {
  auto store = open(dir_);
  ship(*store, 4);
  copy_to(copy_);
  const FileBytes lost(std::filesystem::file_size(file(copy_, 1)), std::byte{0xff});
  write(file(copy_, 1), 0, lost);
  const auto before = Verifier::run(copy_);
  ASSERT_TRUE(before) << before.error().message;
  ASSERT_EQ(before->damage.size(), 1u);
  EXPECT_THAT(before->damage[0].text(), HasSubstr("what was written to it is lost"));
  for (int start = 0; start < 2; ++start) {
    const auto again = open(copy_);
    ASSERT_NE(again, nullptr);
    EXPECT_EQ(again->damage().size(), start == 0 ? 1u : 0u);
    EXPECT_FALSE(std::filesystem::exists(file(copy_, 1)));
    EXPECT_EQ(read(file(copy_, 1, "aside")), lost);
    // Its number is not given out again, nor are the generations that were in it.
    const auto session = again->open_session("web", "b");
    ASSERT_TRUE(session);
    EXPECT_GT((*session)->generation().value, 1u);
    EXPECT_FALSE(std::filesystem::exists(file(copy_, 1)));
  }
  const auto report = Verifier::run(copy_);
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_TRUE(report->damage.empty()) << "what is kept is no part of the store";
}

TEST_F(StaleFilesTest, UnderItsNameASegmentIsWhole) {
  // At each operation that makes segments, of either kind: what has a segment's name has its head.
  options_.log.segment_bytes = 40'000;
  options_.maintenance.archive_segment_bytes = 30'000;
  test::FaultyDisk disk;
  std::size_t seen = 0;
  disk.on_operation([&](const test::FaultyDisk::Operation&) {
    std::error_code none_yet;
    for (const auto& entry : std::filesystem::directory_iterator(dir_ + "/segments", none_yet)) {
      if (entry.path().extension() != ".seg") continue;
      FileBytes bytes(20'000);
      std::ifstream in(entry.path(), std::ios::binary);
      if (!in) continue;  // given up by another thread just now
      in.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
      bytes.resize(static_cast<std::size_t>(in.gcount()));
      ASSERT_TRUE(format::decode_segment_head(bytes)) << entry.path();
      const MemorySource source(bytes);
      const ScanItem first = SegmentScanner(source, format::kSegmentHeadBytes).next();
      ASSERT_TRUE(std::holds_alternative<GoodRecord>(first)) << entry.path();
      ++seen;
    }
  });
  auto store = Store::open(
      dir_, clock_, [&] { return disk.file_system(); }, options_);
  ASSERT_TRUE(store) << store.error().message;
  ship(**store, 6);
  clock_.advance(std::chrono::hours(1));
  ASSERT_TRUE((*store)->maintain());
  EXPECT_GT((*store)->stats().archive_segments, 0u);
  store->reset();
  EXPECT_GT(seen, 50u);
}

TEST_F(StaleFilesTest, ASegmentThatIsBegunIsNoSegmentYet) {
  auto store = open(dir_);
  ship(*store, 4);
  store.reset();
  const FileBytes begun = read(file(dir_, 1));
  for (const std::size_t bytes : {std::size_t{0}, std::size_t{100}, std::size_t{9'000}}) {
    copy_to(copy_);
    std::ofstream(file(copy_, 2, "spare")).close();
    write(file(copy_, 2, "spare"), 0, ByteSpan(begun).first(bytes));
    const auto again = open(copy_);
    ASSERT_NE(again, nullptr);
    EXPECT_TRUE(again->damage().empty());
    EXPECT_FALSE(std::filesystem::exists(file(copy_, 2, "spare")));
    EXPECT_EQ(model_.check(*again->reader()), "");
  }
}

TEST_F(StaleFilesTest, ADamagedArchiveThatIsNotListedIsKept) {
  options_.log.segment_bytes = 40'000;
  options_.maintenance.archive_segment_bytes = 30'000;
  auto store = open(dir_);
  ship(*store, 6);
  store.reset();
  store = open(dir_);  // which goes on in another segment
  clock_.advance(std::chrono::hours(1));
  ASSERT_TRUE(store->maintain());
  ASSERT_GT(store->stats().archive_segments, 0u);
  copy_to(copy_);
  // The journal that lists it is lost, and its skeleton is damaged.
  for (const auto& entry : std::filesystem::directory_iterator(copy_ + "/segments")) {
    const std::string path = entry.path().string();
    const auto head = format::decode_segment_head(read(path));
    ASSERT_TRUE(head);
    if (head->kind == format::SegmentKind::journal) {
      std::filesystem::remove(path);
      continue;
    }
    const auto [at, bytes] = records(path, RecordType::skeleton).at(0);
    write(path, at + bytes.size() / 2, FileBytes(1, bytes[bytes.size() / 2] ^ std::byte{1}));
  }
  const auto again = open(copy_);
  ASSERT_NE(again, nullptr);
  EXPECT_FALSE(again->damage().empty());
  EXPECT_EQ(model_.check(*again->reader()), "");
}

TEST_F(StaleFilesTest, WithADamagedNewestSegmentNothingIsUnlinked) {
  options_.log.segment_bytes = 40'000;
  options_.maintenance.archive_segment_bytes = 30'000;
  auto store = open(dir_);
  ship(*store, 6);
  const FileBytes source = read(file(dir_, 1));
  clock_.advance(std::chrono::hours(1));
  ASSERT_TRUE(store->maintain());
  ASSERT_FALSE(std::filesystem::exists(file(dir_, 1))) << "archived";
  ship(*store, 3);
  std::uint64_t newest = 1;
  for (const auto& entry : std::filesystem::directory_iterator(dir_ + "/segments")) {
    newest = std::max(newest, parse_segment_file_name(entry.path().filename().string())->value);
  }
  for (const bool is_damaged : {false, true}) {
    // Left by a crash before it was unlinked.
    copy_to(copy_);
    std::ofstream(file(copy_, 1)).close();
    write(file(copy_, 1), 0, source);
    if (is_damaged) {
      const auto [at, bytes] = records(file(copy_, newest), RecordType::mark).front();
      write(file(copy_, newest), at + bytes.size() / 2, FileBytes(1, std::byte{0xff}));
    }
    const auto again = open(copy_);
    ASSERT_NE(again, nullptr);
    EXPECT_EQ(again->damage().empty(), !is_damaged);
    EXPECT_EQ(model_.check(*again->reader()), "");
    EXPECT_FALSE(std::filesystem::exists(file(copy_, 1)));
    EXPECT_EQ(std::filesystem::exists(file(copy_, 1, "aside")), is_damaged);
  }
}

TEST_F(StaleFilesTest, AMarkOfAnotherLifeInAFullSegmentIsFound) {
  auto store = open(dir_);
  ship(*store, 4);
  store.reset();
  const auto [at, bytes] = records(file(dir_, 1), RecordType::mark).at(3);
  write(file(dir_, 1), at, changed(bytes, [](format::RecordHead&, FileBytes& body) {
          body.at(offsetof(format::MarkBytes, salt)) ^= std::byte{1};
        }));
  const auto report = Verifier::run(dir_);
  ASSERT_TRUE(report) << report.error().message;
  ASSERT_EQ(report->damage.size(), 1u);
  EXPECT_THAT(report->damage[0].text(), HasSubstr("the mark of the batch is not that of"));
  EXPECT_EQ(report->vms.at(0).epochs.size(), 4u) << "it costs nothing";

  store = open(dir_);
  EXPECT_TRUE(store->damage().empty());
  ASSERT_TRUE(store->scrub(std::uint64_t{1} << 20));
  ASSERT_EQ(store->damage().size(), 1u);
  EXPECT_EQ(store->damage()[0].text(), report->damage[0].text());
}

TEST_F(StaleFilesTest, ARecordOfAnotherLifeInAFullSegmentIsFound) {
  auto store = open(dir_);
  ship(*store, 4);
  store.reset();
  const auto [at, bytes] = records(file(dir_, 1), RecordType::page_group).back();
  write(file(dir_, 1), at, changed(bytes, [](format::RecordHead& head, FileBytes&) {
          head.epoch = Epoch{1};  // as whole as it was, but of that epoch
        }));
  const auto report = Verifier::run(dir_);
  ASSERT_TRUE(report) << report.error().message;
  ASSERT_EQ(report->damage.size(), 1u);
  EXPECT_THAT(report->damage[0].text(), HasSubstr("epoch 3 of VM 'web'"));
  EXPECT_THAT(report->damage[0].text(), HasSubstr("another record stands here"));
  EXPECT_EQ(report->vms.at(0).epochs.size(), 3u);
  const auto reader = Reader::open(dir_);
  ASSERT_TRUE(reader);
  for (std::uint64_t epoch = 0; epoch < 4; ++epoch) {
    const auto image = (*reader)->open("web", Epoch{epoch});
    ASSERT_TRUE(image) << image.error().message;
    const std::string trouble = test::compare(**image, model_.acknowledged["web"][epoch]);
    EXPECT_EQ(trouble.empty(), epoch < 3) << trouble;
  }
  store = open(dir_);
  ASSERT_TRUE(store->scrub(std::uint64_t{1} << 20));
  ASSERT_EQ(store->damage().size(), 1u);
  EXPECT_THAT(store->damage()[0].text(), HasSubstr("the mark of the batch is not that of"));
}

}  // namespace
}  // namespace vmshadow::store
