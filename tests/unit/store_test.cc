// The store from outside: sessions in, readers out, and what it says when something is wrong.

#include "store/store.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include "store/reader.h"
#include "store/verifier.h"
#include "support/epoch_maker.h"
#include "support/temp_dir.h"

namespace vmshadow::store {
namespace {

using test::EpochMaker;
using testing::HasSubstr;

class StoreTest : public testing::TestWithParam<io::FileBackend> {
 protected:
  std::string dir() const { return temp_.file("store"); }
  Result<std::unique_ptr<Store>> try_open(StoreOptions options = {}) {
    return Store::open(
        dir(), system_clock(), [] { return io::make_file_system(GetParam()); }, options);
  }
  std::unique_ptr<Store> open(StoreOptions options = {}) {
    auto store = try_open(options);
    if (!store) {
      ADD_FAILURE() << store.error().message;
      std::abort();
    }
    return std::move(*store);
  }
  std::unique_ptr<EpochSession> session(Store& store, const std::string& vm,
                                        const std::string& peer = "10.0.0.1:9") {
    auto session = store.open_session(vm, peer);
    if (!session) {
      ADD_FAILURE() << session.error().message;
      std::abort();
    }
    return std::move(*session);
  }
  void expect_image(const ShadowReader& reader, const std::string& vm, std::uint64_t epoch,
                    const test::ModelImage& model) {
    const auto image = reader.open(vm, Epoch{epoch});
    ASSERT_TRUE(image) << image.error().message;
    EXPECT_EQ(test::compare(**image, model), "") << vm << " epoch " << epoch;
  }
  test::TempDir temp_;
};

TEST_P(StoreTest, EpochsComeBackAsTheyWere) {
  EpochMaker maker("web1");
  std::vector<test::ModelImage> models;
  {
    auto store = open();
    auto s = session(*store, "web1");
    EXPECT_EQ(s->generation(), Generation{1});
    EXPECT_EQ(s->next_epoch(), Epoch{0});
    const std::vector<std::vector<EpochMaker::PageWrite>> epochs = {
        {{0, 11}, {1, 12}, {2, 0}, {3, 13}, {1, 14}, {3, 0}, {2, 15}, {7, 99, 1}},
        {{1, 21}, {9, 22}, {0, 0}},
        {{9, 0}, {0, 31}, {63, 32}},
    };
    for (std::uint64_t i = 0; i < epochs.size(); ++i) {
      const auto receipt = test::ship(*s, maker.make(Generation{1}, Epoch{i}, i == 0, epochs[i]));
      ASSERT_TRUE(receipt) << receipt.error().message;
      EXPECT_EQ(receipt->epoch, Epoch{i});
      models.push_back(maker.image());
      const auto live = store->reader();
      expect_image(*live, "web1", i, maker.image());
    }
    EXPECT_EQ(s->next_epoch(), Epoch{3});
    const auto beside = Reader::open(dir());
    ASSERT_TRUE(beside) << beside.error().message;
    expect_image(**beside, "web1", 2, models[2]);
  }
  const auto reader = Reader::open(dir());
  ASSERT_TRUE(reader) << reader.error().message;
  const auto info = (*reader)->vm("web1");
  ASSERT_TRUE(info);
  ASSERT_EQ(info->epochs.size(), 3u);
  EXPECT_TRUE(info->epochs[0].full);
  EXPECT_FALSE(info->epochs[1].full);
  EXPECT_EQ(info->epochs[1].pages, 3u);
  EXPECT_EQ(info->epochs[1].device_bytes, 300u);
  EXPECT_GT(info->epochs[1].committed_wall.ns, 0);
  for (std::uint64_t i = 0; i < models.size(); ++i) expect_image(**reader, "web1", i, models[i]);

  ScanProgress progress;
  const auto report = Verifier::run(dir(), [&](const ScanProgress& p) { progress = p; });
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_GT(progress.bytes_total, 4096u);
  EXPECT_EQ(progress.bytes_done, progress.bytes_total);
  EXPECT_EQ(report->bytes, progress.bytes_total);
  EXPECT_TRUE(report->damage.empty());
  EXPECT_FALSE(report->torn_tail);
  EXPECT_GT(report->records, 10u);
}

TEST_P(StoreTest, ASessionMayBuildOnWhatWasCommitted) {
  EpochMaker maker("web1");
  std::vector<test::ModelImage> models;
  const auto commit = [&](EpochSession& s, Generation label, bool full,
                          const std::vector<EpochMaker::PageWrite>& writes) {
    const auto receipt = test::ship(s, maker.make(label, s.next_epoch(), full, writes));
    ASSERT_TRUE(receipt) << receipt.error().message;
    models.push_back(maker.image());
  };
  {
    StoreOptions record_by_record;
    record_by_record.piece_bytes = 1;
    auto store = open(record_by_record);
    auto s = session(*store, "web1");
    EXPECT_EQ(s->base().error().code, Errc::not_found);
    commit(*s, Generation{1}, true, {{0, 11}, {1, 12}, {5, 13}});
    commit(*s, Generation{1}, false, {{1, 22}});
    // Of an epoch that is cut off something is in the journal.
    const auto cut_off = maker.make(Generation{1}, s->next_epoch(), false, {{0, 666}, {7, 666}});
    maker.take_back();
    ASSERT_TRUE(s->append(cut_off.records[0]));
  }
  for (std::uint64_t g = 2; g <= 4; ++g) {
    SCOPED_TRACE(g);
    auto store = open();
    auto s = session(*store, "web1");
    EXPECT_EQ(s->generation(), Generation{g});
    const auto base = s->base();
    ASSERT_TRUE(base) << base.error().message;
    EXPECT_EQ((*base)->info().epoch, Epoch{g - 1});
    EXPECT_EQ((*base)->info().generation, Generation{1});
    EXPECT_EQ(test::compare(**base, models.back()), "");
    s->may_build_on_base();
    commit(*s, Generation{1}, false, {{g, 100 + g}, {5, (g % 2) * 7}});
    // Its records go on under one label.
    const auto other = maker.make(s->generation(), s->next_epoch(), false, {{0, 1}});
    maker.take_back();
    const auto refused = test::ship(*s, other);
    ASSERT_FALSE(refused);
    EXPECT_THAT(refused.error().message, HasSubstr("the session's are of 1"));
    s->abandon();
  }
  const auto reader = Reader::open(dir());
  ASSERT_TRUE(reader) << reader.error().message;
  EXPECT_TRUE((*reader)->damage().empty());
  EXPECT_EQ((*reader)->vm("web1")->generation, Generation{4});
  for (std::uint64_t i = 0; i < models.size(); ++i) expect_image(**reader, "web1", i, models[i]);
  // Who is full is so again, under its own generation.
  auto store = open();
  auto s = session(*store, "web1");
  s->may_build_on_base();
  commit(*s, Generation{5}, true, {{0, 5}});
  expect_image(*store->reader(), "web1", models.size() - 1, models.back());
  EXPECT_TRUE(store->reader()->vm("web1")->epochs.back().full);
}

TEST_P(StoreTest, ABaseThatWasNotHandedOutIsNotBuiltOn) {
  EpochMaker maker("web1");
  auto store = open();
  {
    auto s = session(*store, "web1");
    ASSERT_TRUE(test::ship(*s, maker.make(Generation{1}, Epoch{0}, true, {{0, 1}})));
  }
  auto s = session(*store, "web1");
  const auto refused = test::ship(*s, maker.make(Generation{1}, Epoch{1}, false, {{0, 2}}));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Errc::stale_generation);
}

TEST_P(StoreTest, EpochNumbersRiseAcrossGenerations) {
  EpochMaker maker("web1");
  for (std::uint64_t g = 1; g <= 3; ++g) {
    auto store = open();
    auto s = session(*store, "web1");
    EXPECT_EQ(s->generation(), Generation{g});
    EXPECT_EQ(s->next_epoch(), Epoch{(g - 1) * 2});
    for (std::uint64_t i = 0; i < 2; ++i) {
      const auto receipt =
          test::ship(*s, maker.make(s->generation(), s->next_epoch(), i == 0, {{g, g * 10 + i}}));
      ASSERT_TRUE(receipt) << receipt.error().message;
    }
  }
  const auto reader = Reader::open(dir());
  ASSERT_TRUE(reader);
  EXPECT_EQ((*reader)->vm("web1")->epochs.size(), 6u);
  expect_image(**reader, "web1", 5, maker.image());
}

TEST_P(StoreTest, SmallSegmentsRollAndEpochsSpanThem) {
  StoreOptions options;
  options.log.segment_bytes = 40'000;
  options.piece_bytes = 10'000;
  EpochMaker maker("big", 256);
  std::vector<EpochMaker::PageWrite> all;
  for (std::uint64_t page = 0; page < 256; ++page) all.push_back({page, page + 1});
  {
    auto store = open(options);
    auto s = session(*store, "big");
    ASSERT_TRUE(test::ship(*s, maker.make(s->generation(), Epoch{0}, true, all)));
  }
  std::size_t segments = 0;
  for (const auto& file : std::filesystem::directory_iterator(dir() + "/segments")) {
    ++segments;
    EXPECT_LE(file.file_size(), options.log.segment_bytes + 4096);
  }
  EXPECT_GT(segments, 20u);
  auto store = open(options);
  expect_image(*store->reader(), "big", 0, maker.image());
  EXPECT_TRUE(store->damage().empty());
}

TEST_P(StoreTest, OneSessionAVm) {
  auto store = open();
  auto first = session(*store, "web1", "10.1.2.3:4567");
  const auto second = store->open_session("web1", "10.9.9.9:1");
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, Errc::in_use);
  EXPECT_THAT(second.error().message, HasSubstr("10.1.2.3:4567"));
  EXPECT_TRUE(store->open_session("web2", "10.9.9.9:1"));
  first.reset();
  EXPECT_EQ(session(*store, "web1")->generation(), Generation{2});
}

TEST_P(StoreTest, AbandonedEpochsNeverCount) {
  EpochMaker maker("web1");
  auto store = open();
  auto s = session(*store, "web1");
  ASSERT_TRUE(test::ship(*s, maker.make(s->generation(), Epoch{0}, true, {{1, 1}})));
  const auto dropped = maker.make(s->generation(), Epoch{1}, false, {{1, 2}, {2, 2}});
  maker.take_back();
  for (const auto& record : dropped.records) ASSERT_TRUE(s->append(record));
  s->abandon();
  ASSERT_TRUE(test::ship(*s, maker.make(s->generation(), Epoch{1}, false, {{3, 3}})));
  expect_image(*store->reader(), "web1", 1, maker.image());
  s.reset();
  store.reset();
  store = open();
  EXPECT_TRUE(store->damage().empty());
  expect_image(*store->reader(), "web1", 1, maker.image());
}

TEST_P(StoreTest, RefusesWhatDoesNotFit) {
  EpochMaker maker("web1");
  auto store = open();
  auto s = session(*store, "web1");
  const auto expect_refused = [&](const std::vector<std::byte>& record, Errc code,
                                  const std::string& words) {
    const auto taken = s->append(record);
    ASSERT_FALSE(taken);
    EXPECT_EQ(taken.error().code, code) << taken.error().message;
    EXPECT_THAT(taken.error().message, HasSubstr(words));
    const auto again = s->append(record);
    ASSERT_FALSE(again);
    EXPECT_EQ(again.error().message, taken.error().message);
    s->abandon();
  };
  const auto g = s->generation();
  const auto first = [&](Generation generation, Epoch epoch, bool full,
                         std::vector<EpochMaker::PageWrite> writes) {
    auto made = maker.make(generation, epoch, full, writes);
    maker.take_back();
    return made.records;
  };
  expect_refused(first(g, Epoch{0}, false, {{1, 1}})[0], Errc::protocol, "must be full");
  expect_refused(first(g, Epoch{1}, true, {})[0], Errc::protocol, "epoch 0 is next");
  expect_refused(first(Generation{0}, Epoch{0}, true, {})[0], Errc::stale_generation,
                 "of generation 0");
  expect_refused(first(Generation{9}, Epoch{0}, true, {})[0], Errc::protocol, "generation 9");
  expect_refused(first(g, Epoch{0}, true, {{1, 1}})[1], Errc::protocol, "record 1");
  auto damaged = first(g, Epoch{0}, true, {})[0];
  damaged.back() ^= std::byte{1};
  expect_refused(damaged, Errc::corrupt, "checksum");
  EpochMaker other("web2");
  expect_refused(other.make(g, Epoch{0}, true, {}).records[0], Errc::protocol, "another VM");
  expect_refused({}, Errc::protocol, "shorter");

  auto records = first(g, Epoch{0}, true, {{1, 1}, {64, 1}});
  ASSERT_TRUE(s->append(records[0]));
  ASSERT_TRUE(s->append(records[1]));
  expect_refused(records[2], Errc::corrupt, "outside the machine's RAM");

  // An epoch_end that claims other records than were sent.
  auto made = maker.make(g, Epoch{0}, true, {{1, 1}, {2, 2}}, 1);
  std::vector<std::vector<std::byte>> but_last(made.records.begin(), made.records.end() - 1);
  for (const auto& record : but_last) ASSERT_TRUE(s->append(record));
  const auto committed = s->commit(made.end);
  ASSERT_FALSE(committed);
  EXPECT_EQ(committed.error().code, Errc::protocol);
  EXPECT_THAT(committed.error().message, HasSubstr("epoch 0 of VM 'web1'"));
  // The session is as good as new.
  EXPECT_TRUE(test::ship(*s, made));
}

TEST_P(StoreTest, EightVmsCommitTogether) {
  constexpr int kVms = 8;
  constexpr std::uint64_t kEpochs = 12;
  std::vector<EpochMaker> makers;
  for (int i = 0; i < kVms; ++i) makers.emplace_back("vm" + std::to_string(i));
  StoreOptions options;
  options.log.segment_bytes = 300'000;
  {
    auto store = open(options);
    std::vector<std::thread> threads;
    for (int i = 0; i < kVms; ++i) {
      threads.emplace_back([&, i] {
        auto s = store->open_session(makers[i].vm_name(), "peer");
        ASSERT_TRUE(s) << s.error().message;
        for (std::uint64_t e = 0; e < kEpochs; ++e) {
          const auto n = static_cast<std::uint64_t>(i) * 1000 + e;
          const auto receipt = test::ship(
              **s, makers[i].make((*s)->generation(), Epoch{e}, e % 5 == 0, {{e, n}, {e + 1, n}}));
          ASSERT_TRUE(receipt) << receipt.error().message;
        }
      });
    }
    for (auto& thread : threads) thread.join();
    for (auto& maker : makers) {
      expect_image(*store->reader(), maker.vm_name(), kEpochs - 1, maker.image());
    }
  }
  const auto reader = Reader::open(dir());
  ASSERT_TRUE(reader);
  for (auto& maker : makers) {
    EXPECT_EQ((*reader)->vm(maker.vm_name())->epochs.size(), kEpochs);
    expect_image(**reader, maker.vm_name(), kEpochs - 1, maker.image());
  }
}

TEST_P(StoreTest, UnknownThingsAreNamed) {
  EpochMaker maker("web1");
  auto store = open();
  auto s = session(*store, "web1");
  const auto reader = store->reader();
  EXPECT_THAT(reader->open("web1", Epoch{0}).error().message, HasSubstr("no committed epoch yet"));
  ASSERT_TRUE(test::ship(*s, maker.make(s->generation(), Epoch{0}, true, {})));
  auto image = reader->open("web1", Epoch{4});
  ASSERT_FALSE(image);
  EXPECT_EQ(image.error().code, Errc::not_found);
  EXPECT_THAT(image.error().message, HasSubstr("from 0 to 0"));
  image = reader->open("db", Epoch{0});
  ASSERT_FALSE(image);
  EXPECT_EQ(image.error().code, Errc::not_found);
  EXPECT_THAT(image.error().message, HasSubstr("web1"));
  EXPECT_EQ(store->open_session("../etc", "p").error().code, Errc::invalid_argument);
}

TEST_P(StoreTest, OpenNamesWhatIsWrongWithTheDirectory) {
  std::filesystem::create_directories(dir());
  std::ofstream(dir() + "/notes.txt") << "hello";
  auto store = try_open();
  ASSERT_FALSE(store);
  EXPECT_EQ(store.error().code, Errc::invalid_argument);
  EXPECT_THAT(store.error().message, HasSubstr("notes.txt"));
  EXPECT_EQ(Reader::open(dir()).error().code, Errc::invalid_argument);
  std::filesystem::remove_all(dir());
  EXPECT_EQ(Reader::open(dir()).error().code, Errc::not_found);
  std::ofstream(dir()) << "a file";
  EXPECT_EQ(try_open().error().code, Errc::invalid_argument);
  EXPECT_THAT(Reader::open(dir()).error().message, HasSubstr("not a directory"));
}

TEST_P(StoreTest, LockedByAnotherProcess) {
  open();
  int to_parent[2];
  int to_child[2];
  ASSERT_EQ(::pipe(to_parent), 0);
  ASSERT_EQ(::pipe(to_child), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    auto lock = StoreDirectory::lock(dir());
    char c = lock ? 'y' : 'n';
    (void)!::write(to_parent[1], &c, 1);
    (void)!::read(to_child[0], &c, 1);
    ::_exit(0);
  }
  char c = 0;
  ASSERT_EQ(::read(to_parent[0], &c, 1), 1);
  ASSERT_EQ(c, 'y');
  const auto store = try_open();
  EXPECT_TRUE(Reader::open(dir())) << "readers need no lock";
  ASSERT_EQ(::write(to_child[1], &c, 1), 1);
  ::waitpid(child, nullptr, 0);
  ASSERT_FALSE(store);
  EXPECT_EQ(store.error().code, Errc::in_use);
  EXPECT_THAT(store.error().message, HasSubstr("process " + std::to_string(child)));
  EXPECT_TRUE(try_open());
}

TEST_P(StoreTest, ReadOnlyDirectory) {
  {
    auto store = open();
    session(*store, "web1");
  }
  std::filesystem::permissions(dir(), std::filesystem::perms{0555});
  std::filesystem::permissions(temp_.path(), std::filesystem::perms{0755});
  std::filesystem::permissions(dir() + "/segments", std::filesystem::perms{0555});
  std::filesystem::permissions(dir() + "/LOCK", std::filesystem::perms{0444});
  for (const char* name : {"/VMSHADOW-STORE", "/segments/0000000000000001.seg"}) {
    std::filesystem::permissions(dir() + name, std::filesystem::perms{0444});
  }
  const pid_t child = ::fork();
  if (child == 0) {
    // Permissions do not hold against root.
    if (::geteuid() == 0 && ::setresuid(65534, 65534, 65534) != 0) ::_exit(9);
    const auto store = try_open();
    if (store || store.error().code != Errc::permission) ::_exit(1);
    if (store.error().message.find("cannot be written") == std::string::npos) ::_exit(2);
    ::_exit(Reader::open(dir()) ? 0 : 3);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST_P(StoreTest, NewerAndForeignStores) {
  open();
  const std::string identity = dir() + "/VMSHADOW-STORE";
  std::string text;
  std::getline(std::ifstream(identity), text, '\0');
  std::ofstream(identity) << "vmshadow-store 99\nwho knows\n";
  for (const auto& error : {try_open().error(), Reader::open(dir()).error()}) {
    EXPECT_EQ(error.code, Errc::version);
    EXPECT_THAT(error.message, HasSubstr("use a newer vmshadow"));
  }
  std::string flipped = text;
  flipped[text.find("id ") + 5] ^= 1;
  std::ofstream(identity) << flipped;
  EXPECT_EQ(try_open().error().code, Errc::corrupt);
  std::ofstream(identity) << text;

  const auto put_segment = [&](const std::vector<std::byte>& head) {
    std::ofstream out(dir() + "/segments/0000000000000001.seg", std::ios::binary);
    out.write(reinterpret_cast<const char*>(head.data()),
              static_cast<std::streamsize>(head.size()));
  };
  put_segment(format::encode_segment_head({{}, SegmentId{1}, WallTime{}}));
  EXPECT_EQ(try_open().error().code, Errc::invalid_argument);
  EXPECT_THAT(try_open().error().message, HasSubstr("belongs to another store"));
  const auto id = decode_identity(text);
  ASSERT_TRUE(id);
  put_segment(format::encode_segment_head({*id, SegmentId{7}, WallTime{}}));
  EXPECT_THAT(try_open().error().message, HasSubstr("is segment 0000000000000007.seg"));
  std::filesystem::remove(identity);
  EXPECT_EQ(try_open().error().code, Errc::corrupt);
}

TEST_P(StoreTest, ForeignFilesAreLeftAlone) {
  EpochMaker maker("web1");
  {
    auto store = open();
    auto s = session(*store, "web1");
    ASSERT_TRUE(test::ship(*s, maker.make(s->generation(), Epoch{0}, true, {{1, 1}})));
  }
  std::ofstream(dir() + "/segments/core.1234") << "?";
  EXPECT_TRUE(try_open());
  const auto report = Verifier::run(dir());
  ASSERT_TRUE(report);
  EXPECT_THAT(report->foreign, testing::ElementsAre(HasSubstr("core.1234")));
  EXPECT_TRUE(std::filesystem::exists(dir() + "/segments/core.1234"));
}

INSTANTIATE_TEST_SUITE_P(Backends, StoreTest,
                         testing::Values(io::FileBackend::uring, io::FileBackend::syscalls),
                         [](const auto& param) {
                           return param.param == io::FileBackend::uring ? "Uring" : "Syscalls";
                         });

}  // namespace
}  // namespace vmshadow::store
