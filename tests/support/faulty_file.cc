#include "support/faulty_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <deque>
#include <filesystem>
#include <fstream>
#include <random>
#include <utility>

#include "base/unique_fd.h"

namespace vmshadow::test {
namespace {

constexpr std::size_t kSectorBytes = 512;

std::vector<std::byte> read_whole(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  const std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  const auto bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}

}  // namespace

using Kind = FaultyDisk::OperationKind;

class FaultyFile final : public io::AppendFile {
 public:
  FaultyFile(FaultyDisk& disk, std::string path) : disk_(disk), path_(std::move(path)) {}

  Status write(std::span<const ByteSpan> pieces, std::uint64_t offset,
               io::Durability durability) override {
    std::vector<std::byte> bytes;
    for (const ByteSpan piece : pieces) bytes.insert(bytes.end(), piece.begin(), piece.end());
    if (!bytes.empty()) VMSHADOW_TRY(put(offset, bytes));
    if (durability == io::Durability::durable) return sync();
    return {};
  }

  /// In the order they were begun. How they end is told as late as can be.
  void begin_write(std::span<const ByteSpan> pieces, std::uint64_t offset) override {
    begun_.push_back(write(pieces, offset, io::Durability::buffered));
  }
  Status finish_write() override {
    auto oldest = std::move(begun_.front());
    begun_.pop_front();
    return oldest;
  }
  bool finishes_at_once() override { return false; }

  Status truncate(std::uint64_t size) override {
    const auto turn = disk_.next_operation(Kind::truncate, path_);
    if (turn.fault) return fail_errno(turn.error(), "'" + path_ + "': truncating");
    FaultyDisk::File& file = disk_.load(path_);
    file.now.resize(size);
    file.durable = file.now;
    file.unsynced.clear();
    disk_.store(path_, file.now);
    return {};
  }

  Status preallocate(std::uint64_t end) override {
    const auto turn = disk_.next_operation(Kind::preallocate, path_);
    const std::uint64_t now = disk_.load(path_).now.size();
    if (end <= now) return {};
    int error = turn.error();
    if (disk_.capacity_ && disk_.used_bytes_locked() + (end - now) > *disk_.capacity_) {
      error = ENOSPC;
    }
    if (error != 0) return fail_errno(error, "'" + path_ + "': reserving space");
    change(now, std::vector<std::byte>(end - now));
    return {};
  }

  Status sync() override {
    const auto turn = disk_.next_operation(Kind::sync, path_);
    if (turn.fault) return fail_errno(turn.error(), "'" + path_ + "': syncing");
    ++disk_.syncs_;
    FaultyDisk::File& file = disk_.load(path_);
    for (const FaultyDisk::Change& change : file.unsynced) {
      FaultyDisk::apply(file.durable, change, 0, change.bytes.size());
    }
    file.unsynced.clear();
    return {};
  }

 private:
  Status put(std::uint64_t offset, ByteSpan bytes) {
    const auto turn = disk_.next_operation(Kind::write, path_, bytes.size());
    int error = turn.error();
    std::size_t kept = bytes.size();
    if (turn.fault && !turn.fault->tear_seed) kept = std::min(kept, turn.fault->bytes_kept);
    if (disk_.capacity_) {
      const std::uint64_t used = disk_.used_bytes_locked();
      const std::uint64_t now = disk_.load(path_).now.size();
      const std::uint64_t room = *disk_.capacity_ > used ? *disk_.capacity_ - used : 0;
      const std::uint64_t end_max = now + room;
      if (offset + kept > end_max) {
        kept = offset < end_max ? end_max - offset : 0;
        error = error == 0 ? ENOSPC : error;
      }
    }
    if (turn.fault && turn.fault->tear_seed) {
      std::mt19937_64 random(*turn.fault->tear_seed);
      for (std::size_t at = 0; at < kept; at += kSectorBytes) {
        if (random() % 2 == 0) continue;
        change(offset + at, bytes.subspan(at, std::min(kSectorBytes, kept - at)));
      }
    } else {
      change(offset, bytes.first(kept));
    }
    if (error != 0) return fail_errno(error, "'" + path_ + "': writing");
    return {};
  }
  void change(std::uint64_t offset, ByteSpan bytes) {
    if (bytes.empty()) return;
    FaultyDisk::File& file = disk_.load(path_);
    FaultyDisk::Change change{offset, {bytes.begin(), bytes.end()}};
    FaultyDisk::apply(file.now, change, 0, bytes.size());
    disk_.put(path_, change);
    file.unsynced.push_back(std::move(change));
  }

  FaultyDisk& disk_;
  const std::string path_;
  std::deque<Status> begun_;
};

class FaultyFileSystem final : public io::FileSystem {
 public:
  explicit FaultyFileSystem(FaultyDisk& disk) : disk_(disk) {}

  Result<std::unique_ptr<io::AppendFile>> create(const std::string& path) override {
    const auto turn = disk_.next_operation(Kind::create, path);
    if (turn.fault) return fail_errno(turn.error(), "creating '" + path + "'");
    if (std::filesystem::exists(path)) return fail_errno(EEXIST, "creating '" + path + "'");
    disk_.remember_entry(path);
    disk_.files_[path] = {};
    disk_.store(path, {});
    return std::make_unique<FaultyFile>(disk_, path);
  }
  Result<std::unique_ptr<io::AppendFile>> open(const std::string& path) override {
    const auto turn = disk_.next_operation(Kind::open, path);
    if (turn.fault) return fail_errno(turn.error(), "opening '" + path + "'");
    if (!std::filesystem::exists(path)) return fail_errno(ENOENT, "opening '" + path + "'");
    return std::make_unique<FaultyFile>(disk_, path);
  }
  Status rename(const std::string& from, const std::string& to) override {
    const auto turn = disk_.next_operation(Kind::rename, from);
    if (turn.fault) return fail_errno(turn.error(), "renaming '" + from + "'");
    disk_.load(from);
    disk_.remember_entry(from);
    disk_.remember_entry(to);
    disk_.files_[to] = std::move(disk_.files_[from]);
    disk_.files_.erase(from);
    std::filesystem::rename(from, to);
    return {};
  }
  Status remove(const std::string& path) override {
    const auto turn = disk_.next_operation(Kind::remove, path);
    if (turn.fault) return fail_errno(turn.error(), "removing '" + path + "'");
    if (!std::filesystem::exists(path)) return fail_errno(ENOENT, "removing '" + path + "'");
    disk_.load(path);
    disk_.remember_entry(path);
    disk_.files_.erase(path);
    std::filesystem::remove(path);
    return {};
  }
  Status sync_directory(const std::string& path) override {
    const auto turn = disk_.next_operation(Kind::sync_directory, path);
    if (turn.fault) return fail_errno(turn.error(), "syncing '" + path + "'");
    std::erase_if(disk_.pending_entries_, [&](const auto& entry) {
      return std::filesystem::path(entry.first).parent_path() == std::filesystem::path(path);
    });
    return {};
  }
  io::DirectSupport direct_support(const std::string&) override {
    return {false, 0, "a disk of the tests"};
  }

 private:
  FaultyDisk& disk_;
};

void FaultyDisk::fail_at(std::uint64_t n, int errno_value, std::size_t bytes_kept) {
  const std::lock_guard lock(mutex_);
  faults_[n] = {errno_value, bytes_kept, std::nullopt};
}

void FaultyDisk::tear_at(std::uint64_t n, int errno_value, std::uint64_t seed) {
  const std::lock_guard lock(mutex_);
  faults_[n] = {errno_value, 0, seed};
}

void FaultyDisk::crash_at(std::uint64_t n) {
  const std::lock_guard lock(mutex_);
  crash_at_ = n;
}

void FaultyDisk::set_capacity(std::uint64_t bytes) {
  const std::lock_guard lock(mutex_);
  capacity_ = bytes;
}

void FaultyDisk::clear_faults() {
  const std::lock_guard lock(mutex_);
  faults_.clear();
  crash_at_.reset();
  capacity_.reset();
}

void FaultyDisk::corrupt(const std::string& path, std::uint64_t offset, std::uint64_t count,
                         std::byte flip) {
  const std::lock_guard lock(mutex_);
  load(path);
  corruptions_[path].push_back({offset, count, flip});
  store(path, load(path).now);
}

void FaultyDisk::heal() {
  const std::lock_guard lock(mutex_);
  for (const auto& [path, ranges] : std::exchange(corruptions_, {})) {
    if (std::filesystem::exists(path)) store(path, load(path).now);
  }
}

void FaultyDisk::on_operation(std::function<void(const Operation&)> callback) {
  const std::lock_guard lock(mutex_);
  callback_ = std::move(callback);
}

std::uint64_t FaultyDisk::operations() const {
  const std::lock_guard lock(mutex_);
  return operations_;
}

std::uint64_t FaultyDisk::syncs() const {
  const std::lock_guard lock(mutex_);
  return syncs_;
}

FaultyDisk::Turn FaultyDisk::next_operation(OperationKind kind, const std::string& path,
                                            std::uint64_t bytes) {
  std::unique_lock lock(mutex_);
  const std::uint64_t n = operations_++;
  if (callback_) {
    const auto callback = callback_;
    lock.unlock();
    callback({n, kind, path, bytes});
    lock.lock();
  }
  Turn turn{std::move(lock), std::nullopt};
  if (crash_at_ && n >= *crash_at_) {
    // The write under way when the power went may have reached the disk's cache.
    turn.fault = {EIO, n == *crash_at_ ? SIZE_MAX : 0, std::nullopt};
  } else if (const auto fault = faults_.find(n); fault != faults_.end()) {
    turn.fault = fault->second;
  }
  return turn;
}

std::uint64_t FaultyDisk::used_bytes() const {
  const std::lock_guard lock(mutex_);
  return used_bytes_locked();
}

std::uint64_t FaultyDisk::used_bytes_locked() const {
  std::uint64_t sum = 0;
  for (const auto& [path, file] : files_) sum += file.now.size();
  return sum;
}

FaultyDisk::File& FaultyDisk::load(const std::string& path) {
  const auto found = files_.find(path);
  if (found != files_.end()) return found->second;
  File file;
  file.durable = file.now = read_whole(path);
  return files_[path] = std::move(file);
}

void FaultyDisk::remember_entry(const std::string& path) {
  if (pending_entries_.contains(path)) return;
  const auto found = files_.find(path);
  pending_entries_[path] = found == files_.end() ? OldEntry() : OldEntry(found->second);
}

void FaultyDisk::put(const std::string& path, const Change& change) {
  const UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
  [[maybe_unused]] const ssize_t n = ::pwrite(fd.get(), change.bytes.data(), change.bytes.size(),
                                              static_cast<off_t>(change.offset));
  flip_bits(path, change.offset, change.bytes.size());
}

void FaultyDisk::store(const std::string& path, const std::vector<std::byte>& bytes) {
  {
    std::ofstream out(path, std::ios::binary | std::ios::trunc);
    out.write(reinterpret_cast<const char*>(bytes.data()),
              static_cast<std::streamsize>(bytes.size()));
  }
  flip_bits(path, 0, bytes.size());
}

void FaultyDisk::flip_bits(const std::string& path, std::uint64_t offset, std::uint64_t count) {
  const auto found = corruptions_.find(path);
  if (found == corruptions_.end()) return;
  const UniqueFd fd(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  for (const Corruption& range : found->second) {
    const std::uint64_t end = std::min(offset + count, range.offset + range.count);
    for (std::uint64_t at = std::max(offset, range.offset); at < end; ++at) {
      std::byte byte{};
      if (::pread(fd.get(), &byte, 1, static_cast<off_t>(at)) != 1) continue;
      byte ^= range.flip;
      [[maybe_unused]] const ssize_t n = ::pwrite(fd.get(), &byte, 1, static_cast<off_t>(at));
    }
  }
}

void FaultyDisk::apply(std::vector<std::byte>& contents, const Change& change, std::size_t first,
                       std::size_t count) {
  if (count == 0) return;
  const std::size_t end = change.offset + first + count;
  if (contents.size() < end) contents.resize(end);
  std::memcpy(contents.data() + change.offset + first, change.bytes.data() + first, count);
}

void FaultyDisk::crash(std::uint64_t seed) {
  const std::lock_guard lock(mutex_);
  std::mt19937_64 random(seed);
  const auto chance = [&] { return random() % 2 == 0; };
  // Each unsynced write: its sectors come, or not, one by one; often all or none.
  for (auto& [path, file] : files_) {
    std::vector<std::byte> left = file.durable;
    for (const Change& change : file.unsynced) {
      const std::uint64_t mode = random() % 4;
      for (std::size_t at = 0; at < change.bytes.size(); at += kSectorBytes) {
        if (mode == 0 || (mode >= 2 && chance())) continue;
        apply(left, change, at, std::min(kSectorBytes, change.bytes.size() - at));
      }
    }
    store(path, left);
  }
  // Names that no directory sync covered: as before, or as after.
  for (const auto& [path, old] : pending_entries_) {
    if (chance()) continue;
    if (old) {
      store(path, old->durable);
    } else {
      std::filesystem::remove(path);
    }
  }
  files_.clear();
  pending_entries_.clear();
  clear_faults();
  callback_ = nullptr;
}

std::unique_ptr<io::FileSystem> FaultyDisk::file_system() {
  return std::make_unique<FaultyFileSystem>(*this);
}

}  // namespace vmshadow::test
