// Files: both ways of writing do the same, errors are told apart, locks name their holder.

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "io/aligned_buffer.h"
#include "io/append_file.h"
#include "io/file.h"
#include "io/uring.h"
#include "support/temp_dir.h"

namespace vmshadow::io {
namespace {

using testing::HasSubstr;

std::vector<std::byte> pattern(std::size_t bytes, unsigned seed) {
  std::vector<std::byte> out(bytes);
  for (std::size_t i = 0; i < bytes; ++i) out[i] = static_cast<std::byte>(i * 7 + i / 251 + seed);
  return out;
}

struct Way {
  FileBackend backend;
  DirectIo direct;
};

class AppendFileTest : public testing::TestWithParam<Way> {
 protected:
  AppendFileTest() {
    auto files = make_file_system(GetParam().backend, GetParam().direct);
    EXPECT_TRUE(files) << files.error().message;
    if (files) files_ = std::move(*files);
  }
  std::vector<std::byte> contents(const std::string& path) {
    const auto fd = open_for_reading(path);
    EXPECT_TRUE(fd);
    std::vector<std::byte> bytes(*file_bytes(fd->get()));
    EXPECT_EQ(*read_at(fd->get(), 0, bytes), bytes.size());
    return bytes;
  }
  test::TempDir temp_;
  const std::string path_ = temp_.file("file");
  std::unique_ptr<FileSystem> files_;
};

TEST_P(AppendFileTest, WritesManyPiecesOfAllSizes) {
  auto file = files_->create(path_);
  ASSERT_TRUE(file) << file.error().message;
  std::vector<std::byte> wanted;
  // More than one round of the ring: many pieces, and some larger than one write.
  for (const std::size_t size : {1u, 4096u, 3u << 20, 0u, 17u << 20, 5u}) {
    for (const auto durability : {Durability::buffered, Durability::durable}) {
      const auto a = pattern(size, 1);
      const auto b = pattern(size / 2 + 3, 2);
      const ByteSpan pieces[] = {a, b};
      const auto done = (*file)->write(pieces, wanted.size(), durability);
      ASSERT_TRUE(done) << done.error().message;
      wanted.insert(wanted.end(), a.begin(), a.end());
      wanted.insert(wanted.end(), b.begin(), b.end());
    }
  }
  std::vector<std::vector<std::byte>> small;
  std::vector<ByteSpan> pieces;
  for (unsigned i = 0; i < 2000; ++i) pieces.emplace_back(small.emplace_back(pattern(i % 50, i)));
  ASSERT_TRUE((*file)->write(pieces, wanted.size(), Durability::durable));
  for (const auto& piece : small) wanted.insert(wanted.end(), piece.begin(), piece.end());
  EXPECT_TRUE(contents(path_) == wanted);
  EXPECT_TRUE((*file)->write({}, 0, Durability::durable));
  EXPECT_TRUE((*file)->write({}, 0, Durability::buffered));
}

TEST_P(AppendFileTest, OverwritesTruncatesReopens) {
  const auto bytes = pattern(10'000, 3);
  const ByteSpan all = bytes;
  {
    auto file = files_->create(path_);
    ASSERT_TRUE(file);
    ASSERT_TRUE((*file)->write({&all, 1}, 0, Durability::buffered));
    ASSERT_TRUE((*file)->truncate(5'000));
  }
  EXPECT_EQ(files_->create(path_).error().code, Errc::already_exists);
  auto file = files_->open(path_);
  ASSERT_TRUE(file);
  const ByteSpan tail = all.first(100);
  ASSERT_TRUE((*file)->write({&tail, 1}, 5'000, Durability::durable));
  EXPECT_EQ(contents(path_).size(), 5'100u);
  ASSERT_TRUE(files_->rename(path_, temp_.file("other")));
  EXPECT_EQ(files_->open(path_).error().code, Errc::not_found);
  ASSERT_TRUE(files_->remove(temp_.file("other")));
  EXPECT_EQ(files_->remove(temp_.file("other")).error().code, Errc::not_found);
  EXPECT_TRUE(files_->sync_directory(temp_.path()));
}

TEST_P(AppendFileTest, AFailedWriteNamesTheFile) {
  const ByteSpan some = std::as_bytes(std::span("x", 1));
  auto full = files_->open("/dev/full");
  ASSERT_TRUE(full) << full.error().message;
  const auto refused = (*full)->write({&some, 1}, 0, Durability::buffered);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Errc::no_space);
  EXPECT_THAT(refused.error().message, HasSubstr("/dev/full"));
  EXPECT_EQ(files_->create(temp_.file("no/such/file")).error().code, Errc::not_found);
}

// A file-size limit makes the kernel write less than it was asked to, and then refuse.
TEST_P(AppendFileTest, AShortWriteIsCarriedOn) {
  auto file = files_->create(path_);
  ASSERT_TRUE(file);
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit limit = before;
  limit.rlim_cur = 6'000;
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &limit), 0);
  const auto bytes = pattern(10'000, 1);
  const ByteSpan all = bytes;
  const auto done = (*file)->write({&all, 1}, 0, Durability::durable);
  ::setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, old_handler);
  ASSERT_FALSE(done);
  EXPECT_EQ(done.error().code, Errc::io);
  EXPECT_THAT(done.error().message, HasSubstr("File too large"));
  EXPECT_TRUE((*file)->write({&all, 1}, 0, Durability::durable)) << "the file is usable after";
  EXPECT_TRUE(contents(path_) == bytes);
}

// Whole blocks may go past the page cache: from copies, from where they lie, and mixed with writes
// that may not.
TEST_P(AppendFileTest, WholeBlocksInAllForms) {
  auto file = files_->create(path_);
  ASSERT_TRUE(file) << file.error().message;
  ASSERT_TRUE((*file)->preallocate(std::uint64_t{8} << 20));
  EXPECT_EQ(contents(path_).size(), std::size_t{8} << 20);
  std::vector<std::byte> wanted;
  const auto append = [&](std::span<const ByteSpan> pieces, Durability durability) {
    const auto done = (*file)->write(pieces, wanted.size(), durability);
    ASSERT_TRUE(done) << done.error().message;
    for (const ByteSpan piece : pieces) wanted.insert(wanted.end(), piece.begin(), piece.end());
  };
  AlignedBuffer aligned(3 * kDirectChunkBytes);
  const auto filling = pattern(aligned.size(), 9);
  std::memcpy(aligned.data(), filling.data(), filling.size());
  const auto odd = pattern(5'000, 4);
  const auto rest = pattern(2 * kDirectBlockBytes - 5'000, 5);
  const ByteSpan mixed[] = {odd, ByteSpan(aligned.span()).first(kDirectChunkBytes), rest,
                            aligned.span()};
  append(mixed, Durability::durable);  // several chunks, then the sync
  const ByteSpan one[] = {ByteSpan(aligned.span()).first(kDirectBlockBytes)};
  append(one, Durability::durable);  // a write and a sync, linked
  const ByteSpan two[] = {odd, rest};
  append(two, Durability::buffered);
  append({&two[0], 1}, Durability::durable);  // not whole blocks
  append({&two[1], 1}, Durability::durable);
  const auto large = pattern(std::size_t{20} << 20, 7);  // more chunks than run at once
  const ByteSpan all = large;
  append({&all, 1}, Durability::durable);
  EXPECT_TRUE(contents(path_) == wanted);
  ASSERT_TRUE((*file)->preallocate(wanted.size() + 5'000));
  ASSERT_TRUE((*file)->sync());
  ASSERT_TRUE((*file)->truncate(wanted.size()));
  EXPECT_TRUE(contents(path_) == wanted);
}

TEST_P(AppendFileTest, SeveralAreBegunBeforeTheFirstIsFinished) {
  constexpr std::size_t kMiB = std::size_t{1} << 20;
  AlignedBuffer aligned(3 * kMiB);
  std::memcpy(aligned.data(), pattern(aligned.size(), 9).data(), aligned.size());
  std::vector<std::byte> wanted;
  // More than fit the ring; each of a piece in the middle of nowhere and one at a block's address,
  // the last but one not of whole blocks.
  std::vector<std::vector<std::byte>> odd;
  for (unsigned i = 0; i < 9; ++i) {
    odd.push_back(pattern(i == 7 ? 777 : (1 + i % 3) * kMiB + 4096, i));
  }
  auto file = files_->create(path_);
  ASSERT_TRUE(file) << file.error().message;
  for (const auto& bytes : odd) {
    // (What comes behind the odd one begins where it ends, and goes through the page cache.)
    const ByteSpan pieces[] = {bytes, aligned.span()};
    (*file)->begin_write(pieces, wanted.size());
    for (const ByteSpan piece : pieces) wanted.insert(wanted.end(), piece.begin(), piece.end());
  }
  for (std::size_t i = 0; i < odd.size(); ++i) {
    const auto finished = (*file)->finish_write();
    EXPECT_TRUE(finished) << finished.error().message;
  }
  ASSERT_TRUE((*file)->sync());
  EXPECT_TRUE(contents(path_) == wanted);
  // What nobody finishes is done with when the file is closed.
  const ByteSpan all = aligned.span();
  (*file)->begin_write({&all, 1}, 0);
  file->reset();
  std::memcpy(wanted.data(), all.data(), all.size());
  EXPECT_TRUE(contents(path_) == wanted);
}

TEST_P(AppendFileTest, OneThatFailsAmongSeveralIsTold) {
  constexpr std::size_t kMiB = std::size_t{1} << 20;
  const auto bytes = pattern(2 * kMiB, 1);
  const ByteSpan all = bytes;
  auto file = files_->create(path_);
  ASSERT_TRUE(file);
  // The second is over the largest size that a file may have here.
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit less{3 * kMiB, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &less), 0);
  (*file)->begin_write({&all, 1}, 0);
  (*file)->begin_write({&all, 1}, 2 * kMiB);
  (*file)->begin_write({&all, 1}, 0);
  EXPECT_TRUE((*file)->finish_write());
  const auto failed = (*file)->finish_write();
  EXPECT_TRUE((*file)->finish_write());
  ::setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, old_handler);
  ASSERT_FALSE(failed);
  EXPECT_THAT(failed.error().message, HasSubstr(path_));
}

TEST_P(AppendFileTest, SaysWhatItCan) {
  const std::string text = features_text(*files_, temp_.path());
  EXPECT_EQ(files_->features().uring, GetParam().backend == FileBackend::uring) << text;
  const DirectSupport direct = files_->direct_support(temp_.path());
  if (GetParam().direct == DirectIo::off) {
    EXPECT_FALSE(direct.works);
    EXPECT_THAT(text, HasSubstr("switched off"));
  } else if (direct.works) {
    EXPECT_THAT(text, HasSubstr("O_DIRECT in '" + temp_.path()));
  } else {
    EXPECT_NE(direct.why_not, "");
  }
  EXPECT_FALSE(files_->direct_support(temp_.file("absent")).works);
}

INSTANTIATE_TEST_SUITE_P(Backends, AppendFileTest,
                         testing::Values(Way{FileBackend::uring, DirectIo::automatic},
                                         Way{FileBackend::uring, DirectIo::off},
                                         Way{FileBackend::syscalls, DirectIo::automatic},
                                         Way{FileBackend::syscalls, DirectIo::off}),
                         [](const auto& param) {
                           return std::string(param.param.backend == FileBackend::uring
                                                  ? "Uring"
                                                  : "Syscalls") +
                                  (param.param.direct == DirectIo::off ? "Buffered" : "Direct");
                         });

TEST(FileTest, LocksAreExclusiveAndNamed) {
  const test::TempDir temp;
  auto lock = FileLock::acquire(temp.file("LOCK"));
  ASSERT_TRUE(lock);
  const auto second = FileLock::acquire(temp.file("LOCK"));
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, Errc::in_use);
  EXPECT_THAT(second.error().message, HasSubstr("process " + std::to_string(::getpid())));
  { const FileLock gone = std::move(*lock); }
  EXPECT_TRUE(FileLock::acquire(temp.file("LOCK")));
}

TEST(FileTest, DirectoriesAndSmallFiles) {
  const test::TempDir temp;
  ASSERT_TRUE(make_directory(temp.file("a")));
  ASSERT_TRUE(make_directory(temp.file("a"))) << "there already";
  std::ofstream(temp.file("b")) << "hello";
  EXPECT_THAT(*list_directory(temp.path()), testing::ElementsAre("a", "b"));
  EXPECT_EQ(make_directory(temp.file("b")).error().code, Errc::invalid_argument);
  EXPECT_EQ(list_directory(temp.file("b")).error().code, Errc::invalid_argument);
  EXPECT_EQ(list_directory(temp.file("c")).error().code, Errc::not_found);
  EXPECT_EQ(*read_small_file(temp.file("b"), 5), "hello");
  EXPECT_EQ(read_small_file(temp.file("b"), 4).error().code, Errc::corrupt);
  EXPECT_GT(*free_bytes(temp.path()), 0u);
  EXPECT_FALSE(free_bytes(temp.file("c")));
}

TEST(ReadPastCache, ReadsTheSameBytesAndLeavesTheCacheAlone) {
  const test::TempDir temp;
  const auto wanted = pattern(5 * kDirectBlockBytes + 123, 9);
  std::ofstream(temp.file("file"), std::ios::binary)
      .write(reinterpret_cast<const char*>(wanted.data()),
             static_cast<std::streamsize>(wanted.size()));
  const auto fd = open_for_reading(temp.file("file"));
  ASSERT_TRUE(fd);
  EXPECT_TRUE(is_cached(fd->get(), 0, wanted.size())) << "it was just written";
  const UniqueFd past_cache = open_past_cache(fd->get());
  if (!past_cache) GTEST_SKIP() << "no O_DIRECT here";
  // The name may be gone, or another file's.
  std::filesystem::remove(temp.file("file"));
  ASSERT_EQ(::fdatasync(fd->get()), 0);
  ASSERT_EQ(::posix_fadvise(fd->get(), 0, 0, POSIX_FADV_DONTNEED), 0);
  if (is_cached(fd->get(), 0, 1)) GTEST_SKIP() << "the file system keeps all it has in the cache";
  AlignedBuffer buffer(2 * kDirectBlockBytes);
  const auto got = read_at(past_cache.get(), kDirectBlockBytes, buffer.span());
  ASSERT_TRUE(got) << got.error().message;
  EXPECT_EQ(*got, buffer.size());
  EXPECT_EQ(std::memcmp(buffer.data(), wanted.data() + kDirectBlockBytes, *got), 0);
  EXPECT_FALSE(is_cached(fd->get(), kDirectBlockBytes, *got));
}

}  // namespace
}  // namespace vmshadow::io
