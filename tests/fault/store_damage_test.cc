// Bits that rot in the journal: every one is reported with its segment, offset, VM and epoch, costs
// the epochs that need it, and no others.

#include <fcntl.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <spdlog/spdlog.h>

#include <filesystem>
#include <fstream>

#include "base/hash.h"
#include "format/journal.h"
#include "io/file.h"
#include "store/reader.h"
#include "store/segment_scanner.h"
#include "store/store.h"
#include "store/verifier.h"
#include "support/manual_clock.h"
#include "support/store_model.h"
#include "support/temp_dir.h"
#include "support/thoroughness.h"

namespace vmshadow::store {
namespace {

using format::RecordType;
using test::EpochMaker;
using testing::HasSubstr;

struct PlacedRecord {
  SegmentId segment;
  std::uint64_t offset{};
  std::uint64_t end{};
  format::RecordPrefix prefix;
};

class StoreDamageTest : public testing::Test {
 protected:
  StoreDamageTest() { spdlog::set_level(spdlog::level::off); }
  ~StoreDamageTest() override { spdlog::set_level(spdlog::level::info); }

  void build(std::uint64_t segment_bytes) {
    options_.log.segment_bytes = segment_bytes;
    auto store = open();
    auto web = store->open_session("web", "a");
    auto db = store->open_session("db", "b");
    ASSERT_TRUE(web && db);
    for (std::uint64_t e = 0; e < 6; ++e) {
      const bool full = e == 0 || e == 4;
      full_[e] = full;
      ASSERT_TRUE(model_.ship(**web, web_,
                              web_.make((*web)->generation(), Epoch{e}, full,
                                        {{e % 3, e + 1}, {5, 0}, {6, e + 50}}, 2)));
      ASSERT_TRUE(
          model_.ship(**db, db_, db_.make((*db)->generation(), Epoch{e}, full, {{1, e + 100}})));
    }
    web->reset();
    db->reset();
    store.reset();
    find_records();
  }
  std::unique_ptr<Store> open() {
    auto store = Store::open(
        dir_, system_clock(), [] { return io::make_file_system(io::FileBackend::syscalls); },
        options_);
    EXPECT_TRUE(store) << store.error().message;
    return std::move(*store);
  }
  std::string path_of(SegmentId id) const { return dir_ + "/segments/" + segment_file_name(id); }

  void find_records() {
    for (std::uint64_t id = 1; std::filesystem::exists(path_of(SegmentId{id})); ++id) {
      const auto fd = io::open_for_reading(path_of(SegmentId{id}));
      const auto source = FileSource::create(fd->get());
      SegmentScanner scanner(*source, format::kSegmentHeadBytes);
      while (true) {
        const ScanItem item = scanner.next();
        if (std::holds_alternative<EndOfSegment>(item)) break;
        const auto& record = std::get<GoodRecord>(item);
        records_.push_back({SegmentId{id}, record.offset, scanner.offset(), record.prefix});
      }
    }
  }
  void flip(SegmentId segment, std::uint64_t offset) {
    std::fstream file(path_of(segment), std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(static_cast<std::streamoff>(offset));
    const char c = static_cast<char>(file.get() ^ 0x10);
    file.seekp(static_cast<std::streamoff>(offset));
    file.put(c);
  }

  /// As a killed writer leaves it: the last segment without skeleton and seal. Returns up to where
  /// its records say that they were durable.
  std::uint64_t unseal() {
    const PlacedRecord& seal = records_.back();
    EXPECT_EQ(seal.prefix.head.type, RecordType::seal);
    std::uint64_t end = 0;
    std::uint64_t durable = 0;
    std::vector<PlacedRecord> kept;
    for (const PlacedRecord& record : records_) {
      if (record.segment == seal.segment && record.prefix.head.type == RecordType::skeleton) break;
      kept.push_back(record);
      end = record.end;
      if (record.prefix.head.type != RecordType::commit) continue;
      std::vector<std::byte> body(record.prefix.body_bytes);
      const auto fd = io::open_for_reading(path_of(record.segment));
      EXPECT_TRUE(io::read_at(fd->get(), record.offset + format::kRecordPrefixBytes, body));
      durable = format::decode_commit(body)->durable.offset.value;
    }
    std::filesystem::resize_file(path_of(seal.segment), end);
    records_ = std::move(kept);
    return durable;
  }

  static bool of_epoch(const PlacedRecord& record) {
    const RecordType type = record.prefix.head.type;
    return format::is_epoch_record(type) || type == RecordType::commit;
  }

  void expect_verify_names(const PlacedRecord& record, const VerifyReport& report) {
    if (record.prefix.head.type == RecordType::pad || record.prefix.head.type == RecordType::mark) {
      EXPECT_TRUE(report.torn_tail || !report.damage.empty());
      return;
    }
    if (report.damage.empty()) {
      EXPECT_TRUE(report.torn_tail);  // the end of a segment, which the next start writes again
      EXPECT_FALSE(of_epoch(record));
      return;
    }
    const Damage& damage = report.damage[0];
    EXPECT_EQ(damage.at.segment, record.segment) << damage.text();
    EXPECT_THAT(damage.text(), HasSubstr(segment_file_name(record.segment)));
    if (!of_epoch(record)) return;
    EXPECT_EQ(damage.at.offset.value, record.offset) << damage.text();
    EXPECT_EQ(damage.epoch, record.prefix.head.epoch) << damage.text();
    EXPECT_EQ(vm_id(damage.vm_name), record.prefix.head.vm) << damage.text();
  }

  /// In a sealed segment the skeleton says what a damaged record held: it costs those who would
  /// read it, and verify lists exactly the others.
  void expect_costs_its_readers(const PlacedRecord& record) {
    const auto report = Verifier::run(dir_);
    ASSERT_TRUE(report) << report.error().message;
    expect_verify_names(record, *report);
    const RecordType type = record.prefix.head.type;
    const auto reader = Reader::open(dir_);
    ASSERT_TRUE(reader) << reader.error().message;
    for (const auto& of_vm : model_.acknowledged) {
      const std::string& vm = of_vm.first;
      const auto info = std::find_if(report->vms.begin(), report->vms.end(),
                                     [&](const VmInfo& v) { return v.name == vm; });
      ASSERT_NE(info, report->vms.end());
      for (const auto& of_epoch : of_vm.second) {
        const std::uint64_t epoch = of_epoch.first;
        const test::ModelImage& model = of_epoch.second;
        const auto image = (*reader)->open(vm, Epoch{epoch});
        ASSERT_TRUE(image) << image.error().message;
        const std::string trouble = test::compare(**image, model);
        const bool listed =
            std::any_of(info->epochs.begin(), info->epochs.end(),
                        [&](const EpochInfo& e) { return e.epoch == Epoch{epoch}; });
        EXPECT_EQ(trouble.empty(), listed) << vm << " epoch " << epoch << ": " << trouble;
        if (trouble.empty()) continue;
        EXPECT_TRUE(type == RecordType::page_group || type == RecordType::device_state) << trouble;
        EXPECT_EQ(vm_id(vm), record.prefix.head.vm);
        EXPECT_THAT(trouble, HasSubstr(segment_file_name(record.segment)));
        EXPECT_THAT(trouble, HasSubstr(fmt::format("offset {}", record.offset)));
      }
    }
  }

  /// The epochs that cannot be read without a record, if it alone is damaged.
  bool needs(std::uint64_t epoch, const PlacedRecord& record, bool prefix_is_damaged) const {
    const std::uint64_t damaged = record.prefix.head.epoch.value;
    if (epoch < damaged) return false;
    if (epoch == damaged) return true;
    const RecordType type = record.prefix.head.type;
    if (type == RecordType::epoch_end || type == RecordType::commit) return false;
    if (type == RecordType::device_state && !prefix_is_damaged) return false;
    for (std::uint64_t e = damaged + 1; e <= epoch; ++e) {
      if (full_.at(e)) return false;
    }
    return true;
  }

  /// Where nothing but the records themselves says what there is.
  void expect_costs_what_builds_on_it(const PlacedRecord& record, std::uint64_t offset) {
    const auto report = Verifier::run(dir_);
    ASSERT_TRUE(report) << report.error().message;
    expect_verify_names(record, *report);
    const auto reader = Reader::open(dir_);
    ASSERT_TRUE(reader);
    const bool prefix_is_damaged = offset - record.offset < format::kRecordPrefixBytes;
    for (const auto& [vm, images] : model_.acknowledged) {
      for (const auto& [epoch, model] : images) {
        const auto image = (*reader)->open(vm, Epoch{epoch});
        const bool costs = of_epoch(record) && vm_id(vm) == record.prefix.head.vm &&
                           needs(epoch, record, prefix_is_damaged);
        if (costs) {
          ASSERT_FALSE(image) << "epoch " << epoch << " of " << vm;
          EXPECT_EQ(image.error().code, Errc::corrupt) << image.error().message;
          EXPECT_THAT(image.error().message, HasSubstr(segment_file_name(record.segment)));
          EXPECT_THAT(image.error().message, HasSubstr(fmt::format("offset {}", record.offset)));
        } else {
          ASSERT_TRUE(image) << image.error().message;
          ASSERT_EQ(test::compare(**image, model), "") << vm << " epoch " << epoch;
        }
      }
    }
  }

  template <class Expect>
  void flip_everywhere(std::uint64_t end, const Expect& expect) {
    for (std::size_t i = 0; i < records_.size(); i += test::place_stride()) {
      const PlacedRecord& record = records_[i];
      if (record.offset >= end) return;
      const std::uint64_t length = record.end - record.offset;
      const std::uint64_t stride = length > 1000 ? 499 : 13;
      for (std::uint64_t at = record.offset; at < record.end; at += stride) {
        SCOPED_TRACE(testing::Message()
                     << "segment " << record.segment.value << " offset " << at << ", record type "
                     << static_cast<unsigned>(record.prefix.head.type) << " sequence "
                     << record.prefix.head.sequence << " at " << record.offset);
        flip(record.segment, at);
        expect(record, at);
        flip(record.segment, at);
        if (HasFailure()) return;
      }
    }
  }

  test::TempDir temp_{test::TempDir::Where::memory};
  const std::string dir_ = temp_.file("store");
  StoreOptions options_;
  EpochMaker web_{"web", 8};
  EpochMaker db_{"db", 8};
  test::StoreModel model_;
  std::map<std::uint64_t, bool> full_;
  std::vector<PlacedRecord> records_;
};

TEST_F(StoreDamageTest, FlippedBitsInAnUnsealedSegment) {
  build(std::uint64_t{1} << 30);
  ASSERT_GT(records_.size(), 60u);
  const std::uint64_t durable = unseal();
  flip_everywhere(durable, [this](const PlacedRecord& record, std::uint64_t at) {
    expect_costs_what_builds_on_it(record, at);
  });
}

TEST_F(StoreDamageTest, FlippedBitsInASealedSegment) {
  build(std::uint64_t{1} << 30);
  flip_everywhere(UINT64_MAX, [this](const PlacedRecord& record, std::uint64_t) {
    expect_costs_its_readers(record);
  });
}

TEST_F(StoreDamageTest, FlippedBitsInManySegments) {
  build(40'000);
  ASSERT_GT(records_.back().segment.value, 2u);
  flip_everywhere(UINT64_MAX, [this](const PlacedRecord& record, std::uint64_t) {
    expect_costs_its_readers(record);
  });
}

TEST_F(StoreDamageTest, ADamagedStoreIsOpenForWriting) {
  build(std::uint64_t{1} << 30);
  const auto victim = std::find_if(records_.begin(), records_.end(), [](const PlacedRecord& r) {
    return r.prefix.head.type == RecordType::page_group && r.prefix.head.epoch == Epoch{5};
  });
  flip(victim->segment, victim->offset + 3000);
  auto store = open();
  EXPECT_TRUE(store->damage().empty()) << "who opens a store does not read all of it";
  auto session = store->open_session("web", "a");
  ASSERT_TRUE(session);
  EXPECT_EQ((*session)->next_epoch(), Epoch{6});
  ASSERT_TRUE(
      model_.ship(**session, web_, web_.make((*session)->generation(), Epoch{6}, true, {{1, 1}})));
  const auto image = store->reader()->open("web", Epoch{6});
  ASSERT_TRUE(image) << image.error().message;
  EXPECT_EQ(test::compare(**image, web_.image()), "");
}

TEST_F(StoreDamageTest, AMissingSegmentIsNamed) {
  build(40'000);
  std::filesystem::remove(path_of(SegmentId{2}));
  const auto report = Verifier::run(dir_);
  ASSERT_TRUE(report);
  ASSERT_FALSE(report->damage.empty());
  EXPECT_THAT(report->damage[0].text(), HasSubstr("0000000000000002.seg"));
  EXPECT_THAT(report->damage[0].text(), HasSubstr("missing"));
  // What lies in the other segments alone can be read, and every other epoch says why not.
  const auto reader = Reader::open(dir_);
  ASSERT_TRUE(reader);
  std::size_t good = 0;
  for (const auto& [vm, images] : model_.acknowledged) {
    for (const auto& [epoch, model] : images) {
      const auto image = (*reader)->open(vm, Epoch{epoch});
      if (image) {
        ++good;
        EXPECT_EQ(test::compare(**image, model), "");
      } else {
        EXPECT_EQ(image.error().code, Errc::corrupt) << image.error().message;
      }
    }
  }
  EXPECT_GE(good, 4u);
  EXPECT_LT(good, 12u);
  // Whoever had a generation from the missing segment keeps being fenced.
  auto store = open();
  auto session = store->open_session("web", "a");
  ASSERT_TRUE(session);
  EXPECT_GT((*session)->generation().value, 100u);
}

TEST_F(StoreDamageTest, ANewerProgramsRecordIsSkipped) {
  build(std::uint64_t{1} << 30);
  const PlacedRecord& victim = records_[records_.size() / 2];
  std::vector<std::byte> prefix(format::kRecordPrefixBytes);
  {
    const auto fd = io::open_for_reading(path_of(victim.segment));
    ASSERT_TRUE(io::read_at(fd->get(), victim.offset, prefix));
  }
  prefix[4] = std::byte{9};  // the version
  const le64 sum(checksum64(ByteSpan(prefix).first(56)));
  std::memcpy(prefix.data() + 56, &sum, sizeof sum);
  {
    std::fstream file(path_of(victim.segment), std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(victim.offset));
    file.write(reinterpret_cast<const char*>(prefix.data()), 64);
  }
  const auto report = Verifier::run(dir_);
  ASSERT_TRUE(report);
  ASSERT_FALSE(report->damage.empty());
  EXPECT_THAT(report->damage[0].text(), HasSubstr("record version 9"));
  EXPECT_EQ(report->damage[0].bytes, victim.end - victim.offset);
}

/// What was found damaged stays so when the bytes that showed it are given up: a store on a copy
/// that is damaged, archived whole and opened again.
class LastingDamageTest : public StoreDamageTest {
 protected:
  /// A copy of the store with the journal's end as a killed writer leaves it.
  void copy_store(const std::string& to) {
    std::filesystem::remove_all(to);
    std::filesystem::copy(dir_, to, std::filesystem::copy_options::recursive);
  }
  std::unique_ptr<Store> open_copy(const std::string& path) {
    StoreOptions options = options_;
    options.log.room_bytes_min = 0;
    options.log.spares_max = 0;  // each file is damaged in turn: of these it would do nothing
    options.retention = {std::chrono::seconds(60), std::chrono::seconds(0), std::chrono::seconds(0),
                         std::chrono::seconds(0)};
    options.maintenance.archive_segment_bytes = 30'000;
    options.background_maintenance = false;
    auto store = Store::open(
        path, clock_, [] { return io::make_file_system(io::FileBackend::syscalls); }, options);
    EXPECT_TRUE(store) << store.error().message;
    return store ? std::move(*store) : nullptr;
  }
  /// Archives all of it and keeps every epoch.
  void archive_all(const std::string& path) {
    auto store = open_copy(path);
    for (std::uint64_t e = 0; e < 6; ++e) {
      ASSERT_TRUE(store->pin("web", Epoch{e}));
      ASSERT_TRUE(store->pin("db", Epoch{e}));
    }
    clock_.advance(std::chrono::hours(1));
    ASSERT_TRUE(store->maintain());
    ASSERT_GT(store->stats().archive_segments, 1u);
    store.reset();
    ASSERT_EQ(check(path), "");
    ASSERT_EQ(whole(path).at("web").size() + whole(path).at("db").size(), 12u);
  }
  /// By VM, the epochs of which every byte that they need is whole.
  static std::map<std::string, std::set<Epoch>> whole(const std::string& path) {
    std::map<std::string, std::set<Epoch>> epochs;
    const auto report = Verifier::run(path);
    EXPECT_TRUE(report) << report.error().message;
    if (!report) return epochs;
    for (const VmInfo& vm : report->vms) {
      for (const EpochInfo& epoch : vm.epochs) epochs[vm.name].insert(epoch.epoch);
    }
    return epochs;
  }
  /// Nothing that can be read is wrong.
  std::string check(const std::string& path) const {
    const auto reader = Reader::open(path);
    if (!reader) return reader.error().message;
    for (const auto& [vm, images] : model_.acknowledged) {
      for (const auto& [epoch, model] : images) {
        const auto image = (*reader)->open(vm, Epoch{epoch});
        if (!image) continue;
        const std::string trouble = test::compare(**image, model);
        if (!trouble.empty() && !trouble.starts_with("segment ") &&
            trouble.find("segment 0") == std::string::npos) {
          return fmt::format("epoch {} of {}: {}", epoch, vm, trouble);
        }
      }
    }
    return {};
  }
  /// Archives all of it, some epochs pinned, and opens it again, twice.
  void expect_lasting(const std::string& path) {
    const auto before = whole(path);
    // Without its name nothing can be said of a VM, nor kept: see AVmWithoutAName.
    if (!before.contains("web") || !before.contains("db")) return;
    for (int pass = 0; pass < 3; ++pass) {
      auto store = open_copy(path);
      ASSERT_NE(store, nullptr);
      for (const auto& [vm, epochs] : before) {
        for (const Epoch epoch : epochs) {
          if (pass > 0) break;
          const auto pinned = store->pin(vm, epoch);
          ASSERT_TRUE(pinned) << pinned.error().message;
        }
      }
      clock_.advance(std::chrono::hours(1));
      const auto passed = store->maintain();
      ASSERT_TRUE(passed) << passed.error().message;
      store.reset();
      ASSERT_EQ(check(path), "") << "after pass " << pass;
      const auto after = whole(path);
      for (const auto& [vm, epochs] : after) {
        for (const Epoch epoch : epochs) {
          ASSERT_TRUE(before.contains(vm) && before.at(vm).contains(epoch))
              << "epoch " << epoch.value << " of " << vm << " was damaged, after pass " << pass;
        }
      }
      ASSERT_EQ(after, before) << "after pass " << pass;
    }
  }

  test::ManualClock clock_{system_clock().wall()};
  const std::string copy_ = temp_.file("copy");
};

TEST_F(LastingDamageTest, FlippedBits) {
  for (const bool sealed : {false, true}) {
    records_.clear();
    std::filesystem::remove_all(dir_);
    model_ = {};
    web_ = EpochMaker("web", 8);
    db_ = EpochMaker("db", 8);
    build(sealed ? 40'000 : std::uint64_t{1} << 30);
    const std::uint64_t durable = sealed ? UINT64_MAX : unseal();
    for (std::size_t i = 0; i < records_.size(); i += test::place_stride()) {
      const PlacedRecord& record = records_[i];
      if (record.offset >= durable) break;
      for (const std::uint64_t at : {record.offset + 20, (record.offset + record.end) / 2}) {
        SCOPED_TRACE(testing::Message()
                     << "segment " << record.segment.value << " offset " << at << ", record type "
                     << static_cast<unsigned>(record.prefix.head.type) << " of epoch "
                     << record.prefix.head.epoch.value << " at " << record.offset);
        flip(record.segment, at);
        copy_store(copy_);
        flip(record.segment, at);
        expect_lasting(copy_);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_F(LastingDamageTest, AVmWithoutAName) {
  build(std::uint64_t{1} << 30);
  unseal();
  for (const PlacedRecord& record : records_) {
    const RecordType type = record.prefix.head.type;
    if (record.prefix.head.vm == vm_id("db") &&
        (type == RecordType::grant || type == RecordType::vm_state)) {
      flip(record.segment, record.offset + 70);
    }
  }
  const std::string hex = vm_id("db").hex();
  for (int pass = 0; pass < 2; ++pass) {
    auto store = open_copy(dir_);
    ASSERT_NE(store, nullptr);
    clock_.advance(std::chrono::hours(1));
    ASSERT_TRUE(store->maintain());
    const auto image = store->reader()->open(hex, Epoch{5});
    ASSERT_TRUE(image) << image.error().message;
    EXPECT_EQ(test::compare(**image, model_.acknowledged["db"][5]), "");
    EXPECT_THAT(store->pin(hex, Epoch{5}).error().message, HasSubstr("is lost to damage"));
  }
  // Its next session tells the name again.
  auto store = open_copy(dir_);
  ASSERT_TRUE(store->open_session("db", "b"));
  const auto image = store->reader()->open("db", Epoch{5});
  ASSERT_TRUE(image) << image.error().message;
  EXPECT_EQ(test::compare(**image, model_.acknowledged["db"][5]), "");
}

TEST_F(LastingDamageTest, MissingJournalSegments) {
  build(40'000);
  const std::uint64_t last = records_.back().segment.value;
  ASSERT_GT(last, 3u);
  for (std::uint64_t id = 1; id <= last; ++id) {
    SCOPED_TRACE(testing::Message() << "segment " << id);
    copy_store(copy_);
    std::filesystem::remove(copy_ + "/segments/" + segment_file_name(SegmentId{id}));
    expect_lasting(copy_);
    if (HasFatalFailure()) return;
  }
}

TEST_F(LastingDamageTest, ScrubbingFindsAndQuarantines) {
  build(40'000);
  archive_all(dir_);
  std::uint64_t tried = 0;
  for (const auto& file : std::filesystem::directory_iterator(dir_ + "/segments")) {
    const SegmentId id = *parse_segment_file_name(file.path().filename().string());
    for (std::uint64_t at = format::kSegmentHeadBytes + 20; at < file.file_size();
         at += 1501 * test::place_stride()) {
      SCOPED_TRACE(testing::Message() << "segment " << id.value << " offset " << at);
      flip(id, at);
      copy_store(copy_);
      flip(id, at);
      const auto before = whole(copy_);
      auto store = open_copy(copy_);
      const bool known = !store->damage().empty();
      for (int step = 0; step < 200; ++step) ASSERT_TRUE(store->scrub(4096));
      EXPECT_GE(store->stats().scrub_rounds, 1u);
      const bool found = !store->damage().empty();
      ASSERT_TRUE(found || before.at("web").size() + before.at("db").size() == 12) << "not found";
      ++tried;
      // A second round finds nothing new: what was damaged is gone, or says that it is lost.
      const std::size_t damage = store->damage().size();
      for (int step = 0; step < 200; ++step) ASSERT_TRUE(store->scrub(4096));
      EXPECT_TRUE(known || store->damage().size() == damage);
      store.reset();
      ASSERT_EQ(check(copy_), "");
      ASSERT_EQ(whole(copy_), before);
    }
  }
  EXPECT_GT(tried, 4u);
}

TEST_F(LastingDamageTest, FlippedBitsOfAnArchivedStore) {
  build(40'000);
  archive_all(dir_);
  std::uint64_t tried = 0;
  for (const auto& file : std::filesystem::directory_iterator(dir_ + "/segments")) {
    const SegmentId id = *parse_segment_file_name(file.path().filename().string());
    for (std::uint64_t at = 0; at < file.file_size(); at += 701 * test::place_stride()) {
      SCOPED_TRACE(testing::Message() << "segment " << id.value << " offset " << at);
      flip(id, at);
      copy_store(copy_);
      flip(id, at);
      expect_lasting(copy_);
      if (HasFatalFailure()) return;
      ++tried;
    }
  }
  EXPECT_GT(tried, 20u);
}

TEST_F(LastingDamageTest, ADamagedSealCostsNothing) {
  build(40'000);
  archive_all(dir_);
  std::uint64_t archives = 0;
  for (const auto& file : std::filesystem::directory_iterator(dir_ + "/segments")) {
    const SegmentId id = *parse_segment_file_name(file.path().filename().string());
    std::string front(format::kSegmentHeadBytes, '\0');
    std::ifstream(file.path(), std::ios::binary)
        .read(front.data(), static_cast<std::streamsize>(front.size()));
    const auto head = format::decode_segment_head(std::as_bytes(std::span(front)));
    ASSERT_TRUE(head);
    if (head->kind != format::SegmentKind::archive) continue;
    ++archives;
    // In its prefix, and in its body.
    const std::uint64_t begin = file.file_size() - format::kSealBlockBytes;
    for (std::uint64_t at = begin; at < begin + 120; at += 7) {
      SCOPED_TRACE(testing::Message() << "segment " << id.value << " offset " << at);
      flip(id, at);
      const auto report = Verifier::run(dir_);
      ASSERT_TRUE(report) << report.error().message;
      EXPECT_FALSE(report->damage.empty());
      const auto left = whole(dir_);
      flip(id, at);
      ASSERT_EQ(left.at("web").size() + left.at("db").size(), 12U);
    }
  }
  EXPECT_GT(archives, 1U);
}

TEST_F(LastingDamageTest, MissingArchives) {
  build(40'000);
  const std::string archived = temp_.file("archived");
  copy_store(archived);
  archive_all(archived);
  std::uint64_t tried = 0;
  for (const auto& file : std::filesystem::directory_iterator(archived + "/segments")) {
    SCOPED_TRACE(file.path().filename().string());
    std::filesystem::remove_all(copy_);
    std::filesystem::copy(archived, copy_, std::filesystem::copy_options::recursive);
    std::filesystem::remove(copy_ + "/segments/" + file.path().filename().string());
    expect_lasting(copy_);
    if (HasFatalFailure()) return;
    ++tried;
  }
  EXPECT_GT(tried, 2u);
}

}  // namespace
}  // namespace vmshadow::store
