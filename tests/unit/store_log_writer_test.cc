// Who gets the disk: the fair queue by itself, and a small VM's commits beside one that floods a
// slow disk, counted in operations of the disk.

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <random>
#include <thread>

#include "format/journal.h"
#include "io/file.h"
#include "store/fair_queue.h"
#include "store/log_writer.h"
#include "store/segment_catalog.h"
#include "store/segment_scanner.h"
#include "store/spare_segments.h"
#include "support/faulty_file.h"
#include "support/temp_dir.h"

namespace vmshadow::store {
namespace {

constexpr std::size_t kKiB = 1024;

TEST(FairQueueTest, KeepsTheOrderOfEachVm) {
  std::mt19937 random(7);
  const VmId vms[] = {vm_id("a"), vm_id("b"), vm_id("c")};
  FairQueue<std::pair<int, int>> queue(100);
  int pushed[3] = {};
  int popped[3] = {};
  std::size_t held = 0;
  for (int i = 0; i < 20'000; ++i) {
    const int vm = static_cast<int>(random() % 3);
    if (random() % 2 == 0) {
      const std::size_t bytes = 1 + random() % 1'000;
      queue.push(vms[vm], {vm, pushed[vm]++}, bytes);
      held += bytes;
    } else if (const auto item = queue.pop()) {
      ASSERT_EQ(item->second, popped[item->first]++) << "of VM " << item->first;
    }
    ASSERT_EQ(queue.held_bytes(), held);
  }
  while (const auto item = queue.pop()) ASSERT_EQ(item->second, popped[item->first]++);
  EXPECT_TRUE(queue.empty());
  for (const int vm : {0, 1, 2}) {
    EXPECT_EQ(pushed[vm], popped[vm]);
    queue.release(vms[vm], queue.held_bytes(vms[vm]));
  }
  EXPECT_EQ(queue.held_bytes(), 0u);
}

TEST(FairQueueTest, SharesBytesEvenly) {
  const VmId vms[] = {vm_id("small items"), vm_id("large items")};
  FairQueue<int> queue(100);
  for (int i = 0; i < 1'000; ++i) queue.push(vms[0], 0, 30);
  for (int i = 0; i < 100; ++i) queue.push(vms[1], 1, 300);
  std::size_t bytes[2] = {};
  while (bytes[0] + bytes[1] < 20'000) {
    const int vm = queue.pop().value();
    bytes[vm] += vm == 0 ? 30 : 300;
    ASSERT_LE(bytes[0], bytes[1] + 500);
    ASSERT_LE(bytes[1], bytes[0] + 500);
  }
}

TEST(FairQueueTest, WhoeverWasIdleComesFirstButNotAgainAndAgain) {
  const VmId flood = vm_id("flood");
  const VmId small = vm_id("small");
  FairQueue<int> queue(100);
  for (int i = 0; i < 100; ++i) queue.push(flood, 0, 90);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(queue.pop(), 0);
  queue.push(small, 1, 80);
  // The turn that has begun is at most a quantum.
  int before = 0;
  while (queue.pop() == 0) ++before;
  EXPECT_LE(before, 1);
  // One that comes back at once does not shut the others out.
  int others = 0;
  for (int i = 0; i < 20; ++i) {
    queue.push(small, 1, 80);
    for (int k = 0; k < 2; ++k) others += queue.pop() == 0 ? 1 : 0;
  }
  EXPECT_GE(others, 15);
}

/// Pieces of records that nobody reads back.
LogPiece piece_of(std::size_t bytes) {
  std::vector<std::byte> record;
  const std::vector<std::byte> body(bytes - format::kRecordPrefixBytes);
  format::append_record(record, {format::RecordType::device_state, 0, {}, {}, {}}, body);
  LogPiece piece;
  piece.add(record, {PlaceList::none, 0});
  return piece;
}

class LogWriterTest : public testing::Test {
 protected:
  std::unique_ptr<LogWriter> writer(LogLimits limits = {}) {
    files_ = disk_.file_system();
    EXPECT_TRUE(StoreDirectory::lock(temp_.file("s")));
    auto directory = StoreDirectory::open_or_create(temp_.file("s"), *files_);
    EXPECT_TRUE(directory) << directory.error().message;
    catalog_.emplace(std::move(*directory));
    spares_.emplace(*catalog_, spare_limits(limits));
    return std::make_unique<LogWriter>(
        OpenSegment::Ground{*catalog_, *files_, system_clock(), *spares_}, limits,
        [](SegmentId) { return std::vector<std::byte>(); });
  }
  static EpochInLogPtr epoch_of(const std::string& vm) {
    auto epoch = std::make_shared<EpochInLog>();
    epoch->head.vm = vm_id(vm);
    epoch->vm_name = vm;
    return epoch;
  }
  test::TempDir temp_;
  test::FaultyDisk disk_;
  std::unique_ptr<io::FileSystem> files_;
  std::optional<SegmentCatalog> catalog_;
  std::optional<SpareSegments> spares_;
};

TEST_F(LogWriterTest, AFloodDelaysASmallCommitByABoundedNumberOfOperations) {
  using Kind = test::FaultyDisk::OperationKind;
  LogLimits limits;
  limits.vm_queue_bytes = 1024 * kKiB;
  std::atomic<std::uint64_t> flooded{0};
  std::atomic<std::uint64_t> written_bytes{0};
  std::atomic<bool> stop{false};
  disk_.on_operation([&](const test::FaultyDisk::Operation& operation) {
    if (operation.kind == Kind::write) written_bytes += operation.bytes;
    // Slow: the flood has filled its queue again before the disk goes on.
    const std::uint64_t before = flooded;
    for (int i = 0; i < 1'000 && flooded < before + 2 && !stop; ++i) std::this_thread::yield();
  });
  auto log = writer(limits);
  std::thread flooder([&] {
    const auto epoch = epoch_of("flood");
    while (!stop) {
      EXPECT_TRUE(log->append(epoch, piece_of(64 * kKiB)));
      ++flooded;
    }
  });
  while (flooded < 32) std::this_thread::yield();
  std::vector<std::uint64_t> operations;
  std::vector<std::uint64_t> bytes;
  for (int i = 0; i < 31; ++i) {
    operations.push_back(disk_.operations());
    bytes.push_back(written_bytes);
    EXPECT_TRUE(log->commit(epoch_of("small"), piece_of(2 * kKiB), 0));
    operations.back() = disk_.operations() - operations.back();
    bytes.back() = written_bytes - bytes.back();
  }
  stop = true;
  flooder.join();
  // The write under way (and a new reservation), then its own write and sync. The median, because
  // this thread may lose its processor between counting and committing.
  std::sort(operations.begin(), operations.end());
  std::sort(bytes.begin(), bytes.end());
  EXPECT_LE(operations[15], 6u);
  EXPECT_LE(bytes[15], 3 * limits.vm_queue_bytes);
}

TEST_F(LogWriterTest, AVmWithNothingWaitingIsNeverBlocked) {
  LogLimits limits;
  limits.queue_bytes = 256 * kKiB;
  std::atomic<int> flooded{0};
  std::atomic<bool> hold{true};
  std::atomic<bool> holding{false};
  disk_.on_operation([&](const test::FaultyDisk::Operation& operation) {
    if (operation.kind != test::FaultyDisk::OperationKind::write) return;
    if (operation.path.ends_with(".seg")) holding = true;
    while (hold && holding) std::this_thread::yield();
  });
  auto log = writer(limits);
  std::thread flooder([&] {
    const auto epoch = epoch_of("flood");
    for (int i = 0; i < 64; ++i, ++flooded) {
      EXPECT_TRUE(log->append(epoch, piece_of(64 * kKiB)));
    }
  });
  while (!holding || flooded < 4) std::this_thread::yield();
  // The disk stands still: were this one made to wait, the test would not end.
  EXPECT_TRUE(log->append(epoch_of("small"), piece_of(64 * kKiB)));
  hold = false;
  flooder.join();
}

TEST_F(LogWriterTest, EveryWriteIsWholeBlocksAndTheRestIsPads) {
  std::mt19937 random(3);
  std::atomic<bool> whole{true};
  disk_.on_operation([&](const test::FaultyDisk::Operation& operation) {
    if (operation.path.ends_with(".seg") && operation.bytes % 4096 != 0) whole = false;
  });
  LogLimits limits;
  limits.segment_bytes = 200 * kKiB;
  {
    auto log = writer(limits);
    for (int i = 0; i < 60; ++i) {
      // Among them lengths that leave 8 to 72 bytes, too few for a pad.
      const std::size_t bytes =
          i < 20 ? 4096 - 96 - 8 * static_cast<std::size_t>(i) : 64 + 8 * (random() % 2'000);
      ASSERT_TRUE(log->commit(epoch_of("a"), piece_of(bytes), 0));
    }
  }
  EXPECT_TRUE(whole);
  std::size_t commits = 0;
  std::uint64_t segments = 0;
  for (const auto& [id, facts] : catalog_->all()) {
    ++segments;
    const auto path = catalog_->path(id);
    ASSERT_TRUE(path);
    const auto fd = io::open_for_reading(*path);
    ASSERT_TRUE(fd);
    const auto source = FileSource::create(fd->get());
    EXPECT_EQ(source->bytes() % 4096, 0u);
    SegmentScanner scanner(*source, format::kSegmentHeadBytes);
    while (true) {
      const ScanItem item = scanner.next();
      if (std::holds_alternative<EndOfSegment>(item)) break;
      if (const auto* bad = std::get_if<BadRegion>(&item)) {
        FAIL() << "segment " << id.value << " of " << source->bytes() << " bytes, offset "
               << bad->offset << " to " << bad->end << ": " << bad->what;
      }
      const auto& record = std::get<GoodRecord>(item);
      if (record.prefix.head.type == format::RecordType::commit) ++commits;
      if (record.prefix.head.type == format::RecordType::seal) break;  // zeros follow
    }
  }
  EXPECT_EQ(commits, 60u);
  EXPECT_GT(segments, 1u);
}

// A batch that spans two segments fails in the first: what follows in the second must not be
// acknowledged, it may build on what is missing.
TEST_F(LogWriterTest, NothingIsAcknowledgedBehindAWriteThatFailed) {
  LogLimits limits;
  limits.segment_bytes = 64 * kKiB;
  std::atomic<bool> hold{false};
  std::atomic<bool> held{false};
  disk_.on_operation([&](const test::FaultyDisk::Operation& operation) {
    if (operation.kind != test::FaultyDisk::OperationKind::sync || !hold) return;
    held = true;
    while (hold) std::this_thread::yield();
  });
  auto log = writer(limits);
  ASSERT_TRUE(log->commit(epoch_of("a"), piece_of(8 * kKiB), 0));
  hold = true;
  std::thread first([&] { EXPECT_TRUE(log->commit(epoch_of("a"), piece_of(8 * kKiB), 0)); });
  while (!held) std::this_thread::yield();
  const auto epoch = epoch_of("b");
  ASSERT_TRUE(log->append(epoch, piece_of(24 * kKiB)));
  disk_.fail_at(disk_.operations(), EIO);
  std::thread release([&] { hold = false; });
  const auto committed = log->commit(epoch, piece_of(32 * kKiB), 0);
  first.join();
  release.join();
  ASSERT_FALSE(committed);
  EXPECT_EQ(committed.error().code, Errc::io);
}

/// The commits that a reader of this segment finds, and whether every mark and record is sound.
std::size_t commits_in(const std::string& path) {
  const auto fd = io::open_for_reading(path);
  EXPECT_TRUE(fd);
  const auto source = FileSource::create(fd->get());
  SegmentScanner scanner(*source, format::kSegmentHeadBytes);
  std::size_t commits = 0;
  while (true) {
    const ScanItem item = scanner.next();
    if (std::holds_alternative<EndOfSegment>(item)) return commits;
    if (const auto* bad = std::get_if<BadRegion>(&item)) {
      ADD_FAILURE() << "offset " << bad->offset << " to " << bad->end << ": " << bad->what;
      return commits;
    }
    const auto type = std::get<GoodRecord>(item).prefix.head.type;
    if (type == format::RecordType::commit) ++commits;
    if (type == format::RecordType::seal) return commits;
  }
}

/// Batches that are begun one behind the other, of which one fails while others are under way.
class UnderWayTest : public LogWriterTest {
 protected:
  static constexpr std::size_t kVms = 24;

  /// Commits of a MiB each, of as many VMs, all queued before the disk goes on; of their batches
  /// the second fails so. How each commit ended.
  std::vector<Result<LogWriter::Committed>> commit_all(int errno_value) {
    std::atomic<bool> held{false};
    std::atomic<bool> hold{true};
    std::atomic<int> large{0};
    disk_.on_operation([&](const test::FaultyDisk::Operation& operation) {
      if (operation.kind != test::FaultyDisk::OperationKind::write) return;
      if (operation.path.ends_with(".seg")) held = true;
      while (held && hold) std::this_thread::yield();
      if (operation.bytes > 4096 * kKiB && ++large == 1) {
        disk_.fail_at(operation.number + 1, errno_value, 1024 * kKiB);
      }
    });
    auto log = writer();
    std::vector<Result<LogWriter::Committed>> ended(kVms + 1, fail(Errc::cancelled, "not yet"));
    std::vector<std::thread> threads;
    const auto commit = [&](std::size_t vm, std::size_t bytes) {
      threads.emplace_back([&, vm, bytes] {
        ended[vm] = log->commit(epoch_of(std::to_string(vm)), piece_of(bytes), 0);
      });
    };
    commit(kVms, 2 * kKiB);
    while (!held) std::this_thread::yield();
    for (std::size_t vm = 0; vm < kVms; ++vm) commit(vm, 1024 * kKiB);
    while (log->queued_bytes() < kVms * 1024 * kKiB) std::this_thread::yield();
    hold = false;
    for (std::thread& thread : threads) thread.join();
    EXPECT_GE(large, 3);
    EXPECT_EQ(log->queued_bytes(), 0u);
    log.reset();
    return ended;
  }
  [[nodiscard]] std::size_t commits_on_disk() const {
    std::size_t commits = 0;
    for (const auto& [id, facts] : catalog_->all())
      commits += commits_in(catalog_->path(id).value());
    return commits;
  }
};

TEST_F(UnderWayTest, WhatLiesBehindAFullDiskIsWrittenAnew) {
  for (const auto& ended : commit_all(ENOSPC)) EXPECT_TRUE(ended) << ended.error().message;
  EXPECT_EQ(commits_on_disk(), kVms + 1);
}

TEST_F(UnderWayTest, WhatLiesBehindAFailedWriteIsRefused) {
  const auto ended = commit_all(EIO);
  EXPECT_TRUE(ended.back()) << "it was under way before";
  const auto refused = static_cast<std::size_t>(
      std::count_if(ended.begin(), ended.end(), [](const auto& end) { return !end; }));
  EXPECT_GE(refused, 8u);
  EXPECT_LT(refused, kVms);
  for (const auto& end : ended) {
    if (!end) {
      EXPECT_EQ(end.error().code, Errc::io) << end.error().message;
    }
  }
}

// There are disks on which a sync is through when no write comes any more.
TEST_F(LogWriterTest, ASyncIsNotKeptWaitingByThoseWhoFlood) {
  std::atomic<bool> syncing{false};
  std::atomic<std::uint64_t> beside{0};
  std::atomic<std::uint64_t> most_beside{0};
  std::atomic<std::uint64_t> quiet{0};  // times that nothing was written for a while
  disk_.on_operation([&](const test::FaultyDisk::Operation& operation) {
    if (operation.kind == test::FaultyDisk::OperationKind::write && syncing) {
      beside += operation.bytes;
    }
    if (operation.kind != test::FaultyDisk::OperationKind::sync) return;
    beside = 0;
    syncing = true;
    for (std::uint64_t seen = 0, since = 0; since < 20; ++since) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
      if (seen != beside) since = 0;
      seen = beside;
    }
    syncing = false;
    most_beside = std::max(most_beside.load(), beside.load());
    ++quiet;
  });
  auto log = writer();
  std::atomic<bool> stop{false};
  std::thread flooder([&] {
    for (int epoch = 0; !stop; ++epoch) {
      const auto flood = epoch_of("flood");
      for (int i = 0; i < 64 && !stop; ++i) EXPECT_TRUE(log->append(flood, piece_of(1024 * kKiB)));
      log->abandon(flood);
    }
  });
  for (int i = 0; i < 3; ++i) {
    EXPECT_TRUE(log->commit(epoch_of("small"), piece_of(2 * kKiB), 0));
  }
  stop = true;
  flooder.join();
  EXPECT_GE(quiet, 3u);
  EXPECT_LE(most_beside, 64u << 20);
}

}  // namespace
}  // namespace vmshadow::store
