// Epochs at rest under a key: nothing of the guest is on the disk, all of the store's own work goes
// on without the key, and what needs it says so.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <set>

#include "base/hash.h"
#include "format/skeleton.h"
#include "store/reader.h"
#include "store/store.h"
#include "store/verifier.h"
#include "support/epoch_maker.h"
#include "support/given_keys.h"
#include "support/manual_clock.h"
#include "support/temp_dir.h"

namespace vmshadow::store {
namespace {

using format::RecordType;
using std::chrono::seconds;
using test::EpochMaker;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;
using Bytes = std::vector<std::byte>;

class EncryptionTest : public testing::Test {
 protected:
  EncryptionTest() { keys_->give("web", {5}); }
  std::string dir() const { return temp_.file("store"); }
  /// An epoch every 20 s; all of the last minute are kept, then one a minute.
  StoreOptions options(bool with_keys) const {
    StoreOptions options;
    options.log.segment_bytes = 40'000;
    options.log.room_bytes_min = 0;
    options.piece_bytes = 9'000;
    options.retention = {seconds(60), seconds(600), seconds(0), seconds(0)};
    options.maintenance.archive_segment_bytes = 60'000;
    options.background_maintenance = false;
    if (with_keys) options.keys = keys_;
    return options;
  }
  Result<std::unique_ptr<Store>> open(bool with_keys) {
    return Store::open(
        dir(), clock_, [] { return io::make_file_system(io::FileBackend::syscalls); },
        options(with_keys));
  }
  std::unique_ptr<Store> must_open(bool with_keys) {
    auto store = open(with_keys);
    if (!store) throw std::runtime_error(store.error().message);
    return std::move(*store);
  }
  std::unique_ptr<EpochSession> attach(Store& store, const std::string& vm = "web") {
    auto session = store.open_session(vm, "peer");
    if (!session) throw std::runtime_error(session.error().message);
    return std::move(*session);
  }
  /// `count` epochs, the first full, with pages written twice in the first.
  void ship(EpochSession& session, int count) {
    for (int i = 0; i < count; ++i) {
      clock_.advance(seconds(20));
      std::vector<EpochMaker::PageWrite> writes;
      for (std::uint64_t page = 0; page < (i == 0 ? 24u : 6u); ++page) {
        writes.push_back({(page * 7 + stamp_ % 5) % 48, ++stamp_});
      }
      if (i == 0) {
        for (const std::uint64_t page : {3u, 9u, 21u}) writes.push_back({page, ++stamp_});
        writes.push_back({0, 0});
      }
      const Epoch epoch = session.next_epoch();
      const auto made = maker_.make(session.generation(), epoch, i == 0, writes);
      for (const auto& record : made.records) sent_.push_back(record);
      const auto receipt = test::ship(session, made);
      ASSERT_TRUE(receipt) << receipt.error().message;
      models_[epoch.value] = maker_.image();
    }
  }
  void ship_on_base(EpochSession& session);
  /// Every epoch that a reader with the keys lists is what was shipped; returns how many.
  std::size_t expect_images() {
    const auto reader = Reader::open(dir(), keys_);
    EXPECT_TRUE(reader) << reader.error().message;
    EXPECT_TRUE((*reader)->damage().empty()) << (*reader)->damage().front().text();
    const auto info = (*reader)->vm("web");
    EXPECT_TRUE(info);
    for (const EpochInfo& epoch : info->epochs) {
      const auto image = (*reader)->open("web", epoch.epoch);
      EXPECT_TRUE(image) << image.error().message;
      if (!image) continue;
      EXPECT_EQ(test::compare(**image, models_.at(epoch.epoch.value)), "");
    }
    return info->epochs.size();
  }
  std::vector<std::string> files() const {
    std::vector<std::string> paths;
    for (const auto& file : std::filesystem::recursive_directory_iterator(dir())) {
      if (file.is_regular_file()) paths.push_back(file.path());
    }
    std::sort(paths.begin(), paths.end());
    return paths;
  }
  static Bytes read(const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    const std::string text{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
    const auto bytes = std::as_bytes(std::span(text));
    return {bytes.begin(), bytes.end()};
  }
  static bool holds(const Bytes& in, ByteSpan piece) {
    return std::search(in.begin(), in.end(), piece.begin(), piece.end()) != in.end();
  }
  /// Calls visit(offset, prefix, whole record) for each record of a segment that has checksums that
  /// hold; writes the file if visit says that it changed it.
  template <class Visit>
  void change_records(const std::string& path, Visit&& visit) {
    Bytes bytes = read(path);
    bool changed = false;
    for (std::size_t at = format::kSegmentHeadBytes;
         at + format::kRecordPrefixBytes <= bytes.size();) {
      const auto prefix = format::decode_prefix(ByteSpan(bytes).subspan(at));
      if (!prefix) break;
      const std::size_t size = format::kRecordPrefixBytes + prefix->body_bytes;
      Bytes record(bytes.begin() + static_cast<std::ptrdiff_t>(at),
                   bytes.begin() + static_cast<std::ptrdiff_t>(at + size));
      if (visit(*prefix, record)) {
        ASSERT_EQ(record.size(), size);
        std::copy(record.begin(), record.end(), bytes.begin() + static_cast<std::ptrdiff_t>(at));
        changed = true;
      }
      at += size + format::alignment_gap(size);
    }
    if (!changed) return;
    std::ofstream out(path, std::ios::binary);
    out.write(reinterpret_cast<const char*>(bytes.data()),
              static_cast<std::streamsize>(bytes.size()));
  }
  template <class Visit>
  void change_journal(Visit&& visit) {
    for (const std::string& path : files()) {
      if (path.ends_with(".seg")) change_records(path, visit);
    }
  }

  test::TempDir temp_;
  test::ManualClock clock_;
  std::shared_ptr<test::GivenKeys> keys_ = std::make_shared<test::GivenKeys>();
  EpochMaker maker_{"web", 48};
  std::uint64_t stamp_ = 0;
  std::map<std::uint64_t, test::ModelImage> models_;
  std::vector<Bytes> sent_;
};

TEST_F(EncryptionTest, NothingOfTheGuestIsOnTheDisk) {
  {
    auto store = must_open(true);
    auto session = attach(*store);
    ship(*session, 6);
    clock_.advance(seconds(400));
    session.reset();
    auto again = attach(*store);
    ship(*again, 2);
    ASSERT_TRUE(store->maintain());
    const auto live = store->reader()->open("web", Epoch{7});
    ASSERT_TRUE(live) << live.error().message;
    EXPECT_EQ(test::compare(**live, models_.at(7)), "");
  }
  std::vector<Bytes> stored;
  for (const std::string& path : files()) stored.push_back(read(path));
  std::set<Bytes> secrets;
  const std::string& json = maker_.machine().json;
  ASSERT_FALSE(json.empty());
  const auto text = std::as_bytes(std::span(json));
  secrets.insert({text.begin(), text.end()});
  for (const Bytes& record : sent_) {
    const auto prefix = format::decode_prefix(record);
    const ByteSpan body = ByteSpan(record).subspan(format::kRecordPrefixBytes);
    if (prefix->head.type == RecordType::zero_pages) continue;
    // What was computed of the plain body would tell who guesses it that he is right.
    const auto sum = std::as_bytes(std::span(record)).subspan(48, 8);
    secrets.insert({sum.begin(), sum.end()});
    if (prefix->head.type == RecordType::device_state) {
      secrets.insert({body.begin(), body.begin() + 64});
    }
    if (prefix->head.type != RecordType::page_group) continue;
    const auto group = format::decode_page_group(body);
    ASSERT_TRUE(group);
    for (std::size_t i = 0; i < group->page_count; ++i) {
      const ByteSpan page = group->payload.subspan(i * kPageBytes, 64);
      secrets.insert({page.begin(), page.end()});
      const le64 checksum(group->checksums[i]);
      const auto bytes = std::as_bytes(std::span(&checksum, 1));
      secrets.insert({bytes.begin(), bytes.end()});
    }
  }
  ASSERT_GT(secrets.size(), 100u);
  for (const Bytes& file : stored) {
    for (const Bytes& secret : secrets) ASSERT_FALSE(holds(file, secret));
  }
  EXPECT_GE(expect_images(), 3u);
  const auto report = Verifier::run(dir(), {}, keys_);
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_TRUE(report->damage.empty()) << report->damage.front().text();
  EXPECT_TRUE(report->unopened.empty());
}

TEST_F(EncryptionTest, TheSameWithoutAKeyIsPlain) {
  {
    auto store = must_open(false);
    auto session = attach(*store);
    ship(*session, 1);
  }
  const auto text = std::as_bytes(std::span(maker_.machine().json));
  bool found = false;
  for (const std::string& path : files()) found = found || holds(read(path), text);
  EXPECT_TRUE(found) << "the search above would have found nothing either way";
  EXPECT_FALSE((*Reader::open(dir()))->vm("web")->epochs.front().encrypted);
}

TEST_F(EncryptionTest, WithoutTheKeyAStoreListsButDoesNotRead) {
  {
    auto store = must_open(true);
    auto session = attach(*store);
    ship(*session, 3);
  }
  const auto reader = Reader::open(dir());
  ASSERT_TRUE(reader) << reader.error().message;
  EXPECT_TRUE((*reader)->damage().empty());
  const auto info = (*reader)->vm("web");
  ASSERT_TRUE(info);
  ASSERT_EQ(info->epochs.size(), 3u);
  EXPECT_TRUE(info->epochs[0].full);
  EXPECT_TRUE(info->epochs[2].encrypted);
  EXPECT_EQ(info->epochs[1].device_bytes, 300u);
  const auto image = (*reader)->open("web", Epoch{1});
  ASSERT_FALSE(image);
  EXPECT_EQ(image.error().code, Errc::not_found);
  EXPECT_THAT(image.error().message, AllOf(HasSubstr("VM 'web' has no key"), HasSubstr("--keys"),
                                           HasSubstr("without their key nobody can read them")));

  keys_->give("web", {6});
  const auto wrong = (*Reader::open(dir(), keys_))->open("web", Epoch{1});
  ASSERT_FALSE(wrong);
  EXPECT_EQ(wrong.error().code, Errc::permission);
  EXPECT_THAT(wrong.error().message,
              AllOf(HasSubstr("the key of VM 'web' is wrong: it was sealed with the key"),
                    HasSubstr("cannot be read, by anybody")));
  keys_->take_away("web");
  const auto none = (*Reader::open(dir(), keys_))->open("web", Epoch{1});
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().code, Errc::not_found);
  EXPECT_THAT(none.error().message,
              AllOf(HasSubstr("VM 'web' has no key"), HasSubstr("nobody can read them")));

  const auto report = Verifier::run(dir());
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_TRUE(report->damage.empty());
  ASSERT_TRUE(report->unopened.contains("web"));
  EXPECT_EQ(report->unopened.at("web").code, Errc::not_found);
}

TEST_F(EncryptionTest, AnAttachNeedsTheKeyThatTheNewestEpochsHave) {
  {
    auto store = must_open(true);
    auto session = attach(*store);
    ship(*session, 2);
    session.reset();
    keys_->give("web", {6});
    const auto other = store->open_session("web", "peer");
    ASSERT_FALSE(other);
    EXPECT_EQ(other.error().code, Errc::permission);
    EXPECT_THAT(other.error().message, AllOf(HasSubstr("the key of VM 'web' is wrong"),
                                             HasSubstr("epoch 1 is sealed with the key")));
    keys_->take_away("web");
    const auto none = store->open_session("web", "peer");
    ASSERT_FALSE(none);
    EXPECT_THAT(none.error().message, HasSubstr("VM 'web' has no key"));
    EXPECT_FALSE(store->open_session("db", "peer")) << "with keys no VM goes in plain";
  }
  {
    auto store = must_open(false);
    const auto plain = store->open_session("web", "peer");
    ASSERT_FALSE(plain) << "it would go on in plain";
    EXPECT_EQ(plain.error().code, Errc::not_found);
    EXPECT_THAT(plain.error().message, HasSubstr("VM 'web' has no key: give --keys"));
    EXPECT_TRUE(store->open_session("db", "peer")) << "who never had a key needs none";
  }
  // A new key first, the old one below it: both generations can be read.
  keys_->give("web", {6, 5});
  {
    auto store = must_open(true);
    auto session = attach(*store);
    ship(*session, 2);
  }
  EXPECT_EQ(expect_images(), 4u);
  keys_->give("web", {6});
  EXPECT_TRUE((*Reader::open(dir(), keys_))->open("web", Epoch{3}));
  EXPECT_FALSE((*Reader::open(dir(), keys_))->open("web", Epoch{1}));
}

TEST_F(EncryptionTest, AKeyGivenLaterEncryptsFromTheNextFullEpochOn) {
  {
    auto store = must_open(false);
    auto session = attach(*store);
    ship(*session, 2);
  }
  {
    auto store = must_open(true);
    auto session = attach(*store);
    ship(*session, 2);
  }
  const auto reader = Reader::open(dir());
  const auto info = (*reader)->vm("web");
  ASSERT_EQ(info->epochs.size(), 4u);
  EXPECT_FALSE(info->epochs[1].encrypted);
  EXPECT_TRUE(info->epochs[2].encrypted);
  EXPECT_TRUE((*reader)->open("web", Epoch{1})) << "what was plain stays so";
  EXPECT_EQ(expect_images(), 4u);
}

/// Drain, thin, compact, scrub, with the key or without: the images stay the same.
class EncryptedUpkeepTest : public EncryptionTest, public testing::WithParamInterface<bool> {};

TEST_P(EncryptedUpkeepTest, KeepsEveryImage) {
  {
    auto store = must_open(true);
    auto session = attach(*store);
    ship(*session, 12);
  }
  const bool with_keys = GetParam();
  std::uint64_t scrubbed = 0;
  for (int round = 0; round < 4; ++round) {
    auto store = must_open(with_keys);
    ASSERT_TRUE(store->damage().empty()) << store->damage().front().text();
    clock_.advance(seconds(200));
    const auto passed = store->maintain();
    ASSERT_TRUE(passed) << passed.error().message;
    // Again: nothing may be moved for ever.
    ASSERT_TRUE(store->maintain());
    const std::uint64_t moved = store->stats().moved_bytes;
    ASSERT_TRUE(store->maintain());
    EXPECT_EQ(store->stats().moved_bytes, moved);
    ASSERT_TRUE(store->scrub(std::uint64_t{1} << 30));
    scrubbed += store->stats().scrubbed_bytes;
    ASSERT_TRUE(store->pin("web", Epoch{11}));
    EXPECT_GT(store->stats().archive_segments, 0u);
    EXPECT_TRUE(store->damage().empty()) << store->damage().front().text();
    store.reset();
    EXPECT_GE(expect_images(), 4u);
  }
  EXPECT_GT(scrubbed, 0u);
  std::size_t groups_with_dead_pages = 0;
  change_journal([&](const format::RecordPrefix& prefix, const Bytes& record) {
    if (prefix.head.type != RecordType::sealed_page_group) return false;
    const auto front = format::decode_sealed_front(ByteSpan(record).subspan(64));
    groups_with_dead_pages += front && front->dead_pages != 0 ? 1 : 0;
    return false;
  });
  EXPECT_EQ(groups_with_dead_pages == 0, with_keys) << groups_with_dead_pages;
  const auto report = Verifier::run(dir(), {}, keys_);
  ASSERT_TRUE(report);
  EXPECT_TRUE(report->damage.empty()) << report->damage.front().text();
  // And with the key again, what was carried along for want of it is left out.
  auto store = must_open(true);
  auto session = attach(*store);
  ship(*session, 2);
  ASSERT_TRUE(store->maintain());
  session.reset();
  store.reset();
  EXPECT_GE(expect_images(), 3u);
}

INSTANTIATE_TEST_SUITE_P(Keys, EncryptedUpkeepTest, testing::Bool(),
                         [](const auto& keys) { return keys.param ? "Given" : "Absent"; });

/// Who can write to the disk can make checksums, but no tag: what he changes or moves is refused.
/// One epoch that adds to the newest, under that one's label.
void EncryptionTest::ship_on_base(EpochSession& session) {
  const auto base = session.base();
  ASSERT_TRUE(base) << base.error().message;
  session.may_build_on_base();
  clock_.advance(seconds(20));
  const Epoch epoch = session.next_epoch();
  const auto made = maker_.make((*base)->info().generation, epoch, false, {{5, ++stamp_}, {6, 0}});
  const auto receipt = test::ship(session, made);
  ASSERT_TRUE(receipt) << receipt.error().message;
  models_[epoch.value] = maker_.image();
}

TEST_F(EncryptionTest, ASessionBuildsOnEncryptedEpochsOnlyUnderTheSameKey) {
  {
    auto store = must_open(true);
    ASSERT_NO_FATAL_FAILURE(ship(*attach(*store), 2));
  }
  for (int restart = 0; restart < 2; ++restart) {
    auto store = must_open(true);
    ASSERT_NO_FATAL_FAILURE(ship_on_base(*attach(*store)));
  }
  EXPECT_EQ(expect_images(), 4u);
}

TEST_F(EncryptionTest, WhatIsPlainIsNotBuiltOnOnceThereIsAKey) {
  {
    auto store = must_open(false);
    ASSERT_NO_FATAL_FAILURE(ship(*attach(*store), 2));
    ASSERT_NO_FATAL_FAILURE(ship_on_base(*attach(*store)));
  }
  auto store = must_open(true);
  const auto session = attach(*store);
  const auto base = session->base();
  ASSERT_FALSE(base);
  EXPECT_EQ(base.error().code, Errc::unsupported);
  EXPECT_THAT(base.error().message, HasSubstr("is not encrypted as its next ones shall be"));
  // Told all the same, it takes nothing but a full epoch.
  session->may_build_on_base();
  const auto made = maker_.make(Generation{1}, session->next_epoch(), false, {{5, ++stamp_}});
  maker_.take_back();
  EXPECT_FALSE(test::ship(*session, made));
  session->abandon();
  ASSERT_NO_FATAL_FAILURE(ship(*session, 1));
  EXPECT_EQ(expect_images(), 4u);
}

TEST_F(EncryptionTest, ARecordThatWasChangedOrMovedIsDamage) {
  {
    auto store = must_open(true);
    auto session = attach(*store);
    ship(*session, 3);
  }
  std::optional<Bytes> first;
  change_journal([&](const format::RecordPrefix& prefix, Bytes& record) {
    if (prefix.head.type != RecordType::sealed_device_state) return false;
    if (!first) {
      first = record;
      return false;
    }
    // Epoch 0's device state under the head of epoch 1's.
    if (prefix.head.epoch != Epoch{1} || record.size() != first->size()) return false;
    record = *first;
    format::finish_record(record, 0, prefix.head);
    return true;
  });
  const auto reader = Reader::open(dir(), keys_);
  ASSERT_TRUE(reader);
  const auto image = (*reader)->open("web", Epoch{1});
  // The chain over the prefixes tells already; where a skeleton stands for the records, the tag
  // does.
  const auto state = image ? (*image)->device_state() : Result<Bytes>(fail(image.error()));
  ASSERT_FALSE(state);
  EXPECT_EQ(state.error().code, Errc::corrupt);
  const auto report = Verifier::run(dir(), {}, keys_);
  ASSERT_TRUE(report);
  ASSERT_FALSE(report->damage.empty());
  EXPECT_THAT(report->damage.front().text(), HasSubstr("its tag does not match"));
}

/// A bit flipped in each sealed record in turn costs what the same costs in a plain store: epochs
/// that need the record are refused or fail to read, no others.
TEST_F(EncryptionTest, DamageIsNotSalvagedAndCostsNoOthers) {
  {
    auto store = must_open(true);
    auto session = attach(*store);
    ship(*session, 3);
  }
  change_journal([&](const format::RecordPrefix& prefix, Bytes& record) {
    if (prefix.head.type != RecordType::sealed_page_group || prefix.head.epoch != Epoch{2}) {
      return false;
    }
    record.back() ^= std::byte{1};
    return true;
  });
  const auto reader = Reader::open(dir(), keys_);
  ASSERT_TRUE(reader);
  for (const std::uint64_t epoch : {0u, 1u}) {
    const auto image = (*reader)->open("web", Epoch{epoch});
    ASSERT_TRUE(image) << image.error().message;
    EXPECT_EQ(test::compare(**image, models_.at(epoch)), "");
  }
  const auto image = (*reader)->open("web", Epoch{2});
  if (image) {
    EXPECT_NE(test::compare(**image, models_.at(2)), "");
  }
  const auto report = Verifier::run(dir(), {}, keys_);
  ASSERT_TRUE(report);
  EXPECT_FALSE(report->damage.empty());
  EXPECT_EQ(report->vms.front().epochs.size(), 2u);
}

/// A writer that died in mid-epoch: the store goes on without the key.
TEST_F(EncryptionTest, ATornTailIsCutOffWithoutTheKey) {
  std::string last;
  {
    auto store = must_open(true);
    auto session = attach(*store);
    ship(*session, 1);
    for (const std::string& path : files()) {
      if (path.ends_with(".seg") && path > last) last = path;
    }
    const Bytes whole = read(last);
    std::filesystem::copy_file(last, temp_.file("torn"));
    ship(*session, 1);
  }
  const auto bytes = std::filesystem::file_size(temp_.file("torn"));
  std::filesystem::copy_file(temp_.file("torn"), last,
                             std::filesystem::copy_options::overwrite_existing);
  std::ofstream(last, std::ios::app) << std::string(100, 'x');
  ASSERT_GT(bytes, 0u);
  for (const std::string& path : files()) {
    if (path.ends_with(".seg") && path > last) std::filesystem::remove(path);
  }
  models_.erase(1);
  {
    auto store = must_open(false);
    EXPECT_TRUE(store->torn_tail());
    EXPECT_TRUE(store->damage().empty()) << store->damage().front().text();
  }
  EXPECT_EQ(expect_images(), 1u);
}

}  // namespace
}  // namespace vmshadow::store
