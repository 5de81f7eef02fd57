#include <gtest/gtest.h>

#include <deque>
#include <random>

#include "delta/epoch_encoder.h"
#include "support/epoch_records_reader.h"

namespace vmshadow::delta {
namespace {

using format::PageKey;
using format::RecordType;
using testing::decode_epoch;
using testing::DecodedEpoch;
using testing::Page;
using testing::PageMap;

class EpochEncoderTest : public ::testing::Test {
 protected:
  EpochEncoderTest() : encoder_(PageHasher::create().value(), vm_id("web1"), Generation{3}) {
    machine_.json = R"({"machine_type":"pc"})";
    machine_.configuration.assign(5, std::byte{1});
    machine_.layout.blocks = {{"pc.ram", 256 * kPageBytes}, {"pc.rom", 8 * kPageBytes}};
    machine_.layout.ram_section_id = 2;
    machine_.layout.ram_section_version = 4;
  }

  /// A page whose every byte depends on `seed`, never all zero.
  const std::byte* page(std::uint64_t seed) {
    Page& bytes = pages_.emplace_back();
    std::mt19937_64 random(seed);
    for (auto& b : bytes) b = static_cast<std::byte>(random());
    return bytes.data();
  }
  static PageRef ref(std::uint64_t number, const std::byte* data, std::uint16_t block = 0) {
    return PageRef{BlockIndex{block}, PageNumber{number}, data};
  }
  static PageKey key(std::uint64_t number, std::uint16_t block = 0) {
    return {BlockIndex{block}, PageNumber{number}};
  }

  /// Encodes one epoch and applies it to ram_.
  DecodedEpoch run(std::vector<PageRef> refs, std::size_t device_bytes = 10) {
    std::vector<std::byte> out;
    const Epoch epoch{next_epoch_++};
    encoder_.begin({epoch, full_, full_ ? &machine_ : nullptr}, out);
    full_ = false;
    PageBatch batch;
    batch.pages = std::move(refs);
    encoder_.add(batch, out);
    EpochEnd end;
    end.epoch = epoch;
    end.cut_wall = WallTime{1234};
    end.device_state.assign(device_bytes, std::byte{0x77});
    stats_ = encoder_.end(end, out);
    EXPECT_EQ(stats_.record_bytes, out.size());
    return decode_epoch(out, ram_);
  }

  EpochEncoder encoder_;
  MachineDescription machine_;
  std::deque<Page> pages_;
  PageMap ram_;
  EncodeStats stats_;
  std::uint64_t next_epoch_ = 0;
  bool full_ = true;
};

TEST_F(EpochEncoderTest, FullEpochBeginsWithTheMachineAndEndsWithItsSums) {
  const auto epoch = run({ref(0, page(1)), ref(1, page(2)), ref(2, nullptr), ref(3, nullptr)});
  ASSERT_EQ(epoch.heads.size(), 5u);
  EXPECT_EQ(epoch.heads[0].type, RecordType::machine);
  EXPECT_EQ(epoch.heads[4].type, RecordType::epoch_end);
  EXPECT_EQ(epoch.machine, machine_);
  EXPECT_TRUE(epoch.summary.full);
  EXPECT_EQ(epoch.summary.cut_wall.ns, 1234);
  EXPECT_EQ(epoch.summary.captured_pages, 4u);
  EXPECT_EQ(epoch.summary.stored_pages, 4u);
  EXPECT_EQ(epoch.summary.zero_pages, 2u);
  for (const auto& head : epoch.heads) {
    EXPECT_EQ(head.vm, vm_id("web1"));
    EXPECT_EQ(head.generation, Generation{3});
    EXPECT_EQ(head.epoch, Epoch{0});
  }
}

TEST_F(EpochEncoderTest, UnchangedPagesAreDropped) {
  const auto* data = page(1);
  run({ref(0, data), ref(1, nullptr)});
  const auto second = run({ref(0, data), ref(1, nullptr), ref(2, page(2))});
  EXPECT_FALSE(second.has_machine);
  EXPECT_EQ(stats_.captured_pages, 3u);
  EXPECT_EQ(stats_.unchanged_pages, 2u);
  EXPECT_EQ(stats_.data_pages, 1u);
  EXPECT_EQ(second.summary.stored_pages, 1u);
}

TEST_F(EpochEncoderTest, AnEpochInWhichNothingChangedIsDeviceStateAlone) {
  run({ref(0, page(1))});
  const auto epoch = run({});
  ASSERT_EQ(epoch.heads.size(), 2u);
  EXPECT_EQ(epoch.heads[0].type, RecordType::device_state);
}

TEST_F(EpochEncoderTest, AFullEpochForgetsWhatWasSeen) {
  const auto* data = page(1);
  run({ref(0, data), ref(1, nullptr)});
  full_ = true;
  const auto again = run({ref(0, data), ref(1, nullptr)});
  EXPECT_EQ(stats_.unchanged_pages, 0u);
  EXPECT_EQ(again.summary.stored_pages, 2u);
}

TEST_F(EpochEncoderTest, APageOfZeroBytesIsAZeroPage) {
  Page zero{};
  run({ref(0, zero.data()), ref(1, page(1))});
  EXPECT_EQ(stats_.zero_pages, 1u);
  run({ref(0, nullptr)});
  EXPECT_EQ(stats_.unchanged_pages, 1u);
}

TEST_F(EpochEncoderTest, ASingleByteAnywhereMakesAPageNonZero) {
  for (const std::size_t at : {std::size_t{0}, std::size_t{63}, std::size_t{64}, kPageBytes - 1}) {
    full_ = true;
    Page one{};
    one[at] = std::byte{1};
    run({ref(0, one.data())});
    EXPECT_EQ(stats_.zero_pages, 0u) << "byte " << at;
    EXPECT_EQ(ram_[key(0)], one) << "byte " << at;
  }
}

TEST_F(EpochEncoderTest, ZeroRunsAreMergedInWhateverOrderTheyCome) {
  const auto epoch = run({ref(5, nullptr), ref(6, nullptr), ref(3, nullptr), ref(4, nullptr),
                          ref(0, nullptr, 1), ref(9, nullptr), ref(1, nullptr, 1)});
  ASSERT_EQ(epoch.zero_runs.size(), 3u);
  EXPECT_EQ(epoch.zero_runs[0].first, key(3));
  EXPECT_EQ(epoch.zero_runs[0].count, 4u);
  EXPECT_EQ(epoch.zero_runs[1].first, key(9));
  EXPECT_EQ(epoch.zero_runs[2].first, key(0, 1));
  EXPECT_EQ(epoch.zero_runs[2].count, 2u);
}

TEST_F(EpochEncoderTest, RunsNeverCrossABlock) {
  const auto epoch = run({ref(255, nullptr, 0), ref(0, nullptr, 1)});
  EXPECT_EQ(epoch.zero_runs.size(), 2u);
}

TEST_F(EpochEncoderTest, GroupsHoldSixteenPages) {
  std::vector<PageRef> refs;
  for (std::uint64_t i = 0; i < 35; ++i) refs.push_back(ref(i, page(i + 1)));
  EXPECT_EQ(run(refs).group_sizes, (std::vector<std::size_t>{16, 16, 3}));
}

TEST_F(EpochEncoderTest, OfAPageThatOccursTwiceTheLaterWins) {
  const auto* newer = page(2);
  const auto epoch = run({ref(0, page(1)), ref(1, page(9)), ref(0, newer)});
  EXPECT_EQ(std::memcmp(ram_[key(0)].data(), newer, kPageBytes), 0);
  EXPECT_EQ(epoch.group_sizes, (std::vector<std::size_t>{2, 1}));
}

TEST_F(EpochEncoderTest, DataThenZeroThenDataInOneEpochKeepsTheLast) {
  const auto* first = page(1);
  const auto* last = page(2);
  run({ref(0, first), ref(0, nullptr)});
  EXPECT_EQ(ram_[key(0)], Page{});
  run({ref(0, first), ref(0, nullptr), ref(0, last)});
  EXPECT_EQ(std::memcmp(ram_[key(0)].data(), last, kPageBytes), 0);
  // Back to bytes that were sent before, but are no longer the last.
  run({ref(0, nullptr), ref(0, first), ref(0, last), ref(0, first)});
  EXPECT_EQ(std::memcmp(ram_[key(0)].data(), first, kPageBytes), 0);
}

TEST_F(EpochEncoderTest, ZeroInAnEarlierEpochDoesNotFlushThisOnesRuns) {
  run({ref(0, nullptr)});
  const auto epoch = run({ref(8, nullptr), ref(0, page(1)), ref(9, nullptr)});
  ASSERT_EQ(epoch.zero_runs.size(), 1u);
  EXPECT_EQ(epoch.zero_runs[0].count, 2u);
}

TEST_F(EpochEncoderTest, DeviceStateIsCutIntoPieces) {
  const auto epoch = run({}, 2 * format::kDeviceStatePieceBytes + 1);
  EXPECT_EQ(epoch.device_state.size(), 2 * format::kDeviceStatePieceBytes + 1);
  EXPECT_EQ(epoch.heads.size(), 5u);
}

TEST_F(EpochEncoderTest, AfterAbandonNothingOfTheEpochIsLeft) {
  std::vector<std::byte> out;
  run({ref(0, page(1))});
  encoder_.begin({Epoch{next_epoch_}, false, nullptr}, out);
  PageBatch batch;
  batch.pages = {ref(1, page(2)), ref(2, nullptr)};
  encoder_.add(batch, out);
  encoder_.abandon();
  full_ = true;
  const auto epoch = run({ref(4, page(3))});
  EXPECT_EQ(epoch.summary.stored_pages, 1u);
  EXPECT_TRUE(epoch.zero_runs.empty());
}

TEST_F(EpochEncoderTest, BugsOfTheCallerAreAssertedNotEncoded) {
  ::testing::GTEST_FLAG(death_test_style) = "threadsafe";
  std::vector<std::byte> out;
  EXPECT_DEATH(encoder_.begin({Epoch{0}, false, nullptr}, out), "known");
  EXPECT_DEATH(run({ref(256, page(1))}), "page");
  EXPECT_DEATH(run({ref(0, page(1), 2)}), "block");
}

/// What a store would say of ram_, hashed as the encoder hashes.
class EncoderOnKnownEpochTest : public EpochEncoderTest {
 protected:
  KnownEpoch known() {
    KnownEpoch epoch{Epoch{7}, Generation{2}, machine_, {}};
    for (const RamBlock& block : machine_.layout.blocks) epoch.hashes.emplace_back(block.pages());
    epoch.hashes[0][0] = hasher_.hash(page(1));
    epoch.hashes[0][1] = hasher_.hash(page(2));
    epoch.hashes[1][3] = hasher_.hash(page(3));
    return epoch;
  }
  void restart() {
    encoder_ = EpochEncoder(hasher_, vm_id("web1"), Generation{3}, known());
    next_epoch_ = 8;
  }
  PageHasher hasher_ = PageHasher::create().value();
};

TEST_F(EncoderOnKnownEpochTest, StoresOnlyWhatDiffers) {
  restart();
  const auto epoch = run({ref(0, page(1)), ref(1, page(9)), ref(2, nullptr), ref(3, page(4)),
                          ref(3, nullptr, 1), ref(4, nullptr, 1)});
  EXPECT_FALSE(epoch.summary.full);
  EXPECT_FALSE(stats_.full);
  EXPECT_EQ(stats_.unchanged_pages, 3u);  // one as it was, two zero as they were
  EXPECT_EQ(stats_.data_pages, 2u);
  EXPECT_EQ(stats_.zero_pages, 1u);
  ASSERT_FALSE(epoch.heads.empty());
  for (const format::RecordHead& head : epoch.heads) {
    EXPECT_NE(head.type, RecordType::machine);
    EXPECT_EQ(head.generation, Generation{2});
  }
  EXPECT_EQ(ram_.at(key(1)), *reinterpret_cast<const Page*>(page(9)));

  const auto next = run({ref(0, page(5)), ref(1, page(9))});
  EXPECT_EQ(next.heads[0].generation, Generation{2});
  EXPECT_EQ(stats_.unchanged_pages, 1u);
}

TEST_F(EncoderOnKnownEpochTest, AnotherMachineNeedsAFullEpoch) {
  restart();
  machine_.json = R"({"machine_type":"q35"})";
  const auto epoch = run({ref(0, page(1)), ref(1, page(2))});
  EXPECT_TRUE(epoch.summary.full);
  EXPECT_TRUE(stats_.full);
  EXPECT_EQ(epoch.heads[0].type, RecordType::machine);
  EXPECT_EQ(epoch.heads[0].generation, Generation{3});
  EXPECT_EQ(stats_.data_pages, 2u);
}

TEST_F(EpochEncoderTest, ADisksPagesAreTakenAsTheyComeAndTheLaterBatchWins) {
  machine_.disks = {{"vda", 100 * kPageBytes}, {"vdb", 512}};
  const auto* data = page(1);
  std::vector<std::byte> out;
  encoder_.begin({Epoch{0}, true, &machine_}, out);
  const auto batch = [&](std::vector<PageRef> pages, std::vector<ZeroDiskPages> zeros) {
    PageBatch made;
    made.pages = std::move(pages);
    made.zero_disk_pages = std::move(zeros);
    encoder_.add(made, out);
  };
  batch({ref(0, page(9)), ref(7, data, 2), ref(0, nullptr, 3)},
        {{BlockIndex{2}, PageNumber{8}, 92}});
  batch({ref(8, data, 2), ref(1, page(8))}, {{BlockIndex{2}, PageNumber{0}, 8}});
  batch({ref(2, page(7), 2), ref(99, data, 2)}, {});
  const auto finish = [&](Epoch epoch) {
    EpochEnd end;
    end.epoch = epoch;
    end.device_state.assign(1, std::byte{});
    stats_ = encoder_.end(end, out);
    return decode_epoch(out, ram_);
  };
  const auto first = finish(Epoch{0});
  EXPECT_EQ(first.machine, machine_);
  EXPECT_EQ(stats_.captured_pages, 2u + 2 + 92 + 1 + 8 + 2);
  EXPECT_EQ(stats_.data_pages, 2u + 4);
  EXPECT_EQ(stats_.zero_pages, 1u + 92 + 8);
  EXPECT_EQ(ram_.at(key(7, 2)), Page{});
  EXPECT_EQ(std::memcmp(ram_.at(key(8, 2)).data(), data, kPageBytes), 0);
  EXPECT_EQ(ram_.at(key(9, 2)), Page{});
  EXPECT_NE(ram_.at(key(2, 2)), Page{});
  EXPECT_EQ(std::memcmp(ram_.at(key(99, 2)).data(), data, kPageBytes), 0);
  EXPECT_EQ(ram_.size(), 2u + 100 + 1);

  // The same bytes again are a write again: nothing is known of what a disk holds.
  out.clear();
  encoder_.begin({Epoch{1}, false, nullptr}, out);
  batch({ref(8, data, 2)}, {});
  finish(Epoch{1});
  EXPECT_EQ(stats_.unchanged_pages, 0u);
  EXPECT_EQ(stats_.data_pages, 1u);
}

}  // namespace
}  // namespace vmshadow::delta
