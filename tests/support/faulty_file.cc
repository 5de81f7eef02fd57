#include "support/faulty_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

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

class FaultyFile final : public io::AppendFile {
 public:
  FaultyFile(FaultyDisk& disk, std::string path) : disk_(disk), path_(std::move(path)) {}

  Status write(std::span<const ByteSpan> pieces, std::uint64_t offset,
               io::Durability durability) override {
    std::vector<std::byte> bytes;
    for (const ByteSpan piece : pieces) bytes.insert(bytes.end(), piece.begin(), piece.end());
    if (!bytes.empty()) {
      std::size_t kept = 0;
      int error = disk_.next_operation(&kept);
      if (error == 0) kept = bytes.size();
      kept = std::min(kept, bytes.size());
      if (disk_.capacity_) {
        const std::uint64_t used = disk_.used_bytes();
        const std::uint64_t now = disk_.load(path_).now.size();
        const std::uint64_t room = *disk_.capacity_ > used ? *disk_.capacity_ - used : 0;
        const std::uint64_t end_max = now + room;
        if (offset + kept > end_max) {
          kept = offset < end_max ? end_max - offset : 0;
          error = error == 0 ? ENOSPC : error;
        }
      }
      put(offset, ByteSpan(bytes).first(kept));
      if (error != 0) return fail_errno(error, "'" + path_ + "': writing");
    }
    if (durability == io::Durability::durable) return sync();
    return {};
  }

  Status truncate(std::uint64_t size) override {
    if (const int error = disk_.next_operation()) {
      return fail_errno(error, "'" + path_ + "': truncating");
    }
    FaultyDisk::File& file = disk_.load(path_);
    file.now.resize(size);
    file.durable = file.now;
    file.unsynced.clear();
    FaultyDisk::store(path_, file.now);
    return {};
  }

 private:
  void put(std::uint64_t offset, ByteSpan bytes) {
    if (bytes.empty()) return;
    FaultyDisk::File& file = disk_.load(path_);
    FaultyDisk::Change change{offset, {bytes.begin(), bytes.end()}};
    FaultyDisk::apply(file.now, change, 0, bytes.size());
    file.unsynced.push_back(std::move(change));
    FaultyDisk::store(path_, file.now);
  }
  Status sync() {
    if (const int error = disk_.next_operation()) {
      return fail_errno(error, "'" + path_ + "': syncing");
    }
    ++disk_.syncs_;
    FaultyDisk::File& file = disk_.load(path_);
    file.durable = file.now;
    file.unsynced.clear();
    return {};
  }

  FaultyDisk& disk_;
  const std::string path_;
};

class FaultyFileSystem final : public io::FileSystem {
 public:
  explicit FaultyFileSystem(FaultyDisk& disk) : disk_(disk) {}

  Result<std::unique_ptr<io::AppendFile>> create(const std::string& path) override {
    if (const int error = disk_.next_operation())
      return fail_errno(error, "creating '" + path + "'");
    if (std::filesystem::exists(path)) return fail_errno(EEXIST, "creating '" + path + "'");
    disk_.remember_entry(path);
    disk_.files_[path] = {};
    FaultyDisk::store(path, {});
    return std::make_unique<FaultyFile>(disk_, path);
  }
  Result<std::unique_ptr<io::AppendFile>> open(const std::string& path) override {
    if (const int error = disk_.next_operation())
      return fail_errno(error, "opening '" + path + "'");
    if (!std::filesystem::exists(path)) return fail_errno(ENOENT, "opening '" + path + "'");
    return std::make_unique<FaultyFile>(disk_, path);
  }
  Status rename(const std::string& from, const std::string& to) override {
    if (const int error = disk_.next_operation())
      return fail_errno(error, "renaming '" + from + "'");
    disk_.load(from);
    disk_.remember_entry(from);
    disk_.remember_entry(to);
    disk_.files_[to] = std::move(disk_.files_[from]);
    disk_.files_.erase(from);
    std::filesystem::rename(from, to);
    return {};
  }
  Status remove(const std::string& path) override {
    if (const int error = disk_.next_operation())
      return fail_errno(error, "removing '" + path + "'");
    if (!std::filesystem::exists(path)) return fail_errno(ENOENT, "removing '" + path + "'");
    disk_.load(path);
    disk_.remember_entry(path);
    disk_.files_.erase(path);
    std::filesystem::remove(path);
    return {};
  }
  Status sync_directory(const std::string& path) override {
    if (const int error = disk_.next_operation())
      return fail_errno(error, "syncing '" + path + "'");
    std::erase_if(disk_.pending_entries_, [&](const auto& entry) {
      return std::filesystem::path(entry.first).parent_path() == std::filesystem::path(path);
    });
    return {};
  }

 private:
  FaultyDisk& disk_;
};

void FaultyDisk::fail_at(std::uint64_t n, int errno_value, std::size_t bytes_kept) {
  faults_[n] = {errno_value, bytes_kept};
}

void FaultyDisk::clear_faults() {
  faults_.clear();
  crash_at_.reset();
  capacity_.reset();
}

int FaultyDisk::next_operation(std::size_t* bytes_kept) {
  const std::uint64_t n = operations_++;
  if (crash_at_ && n >= *crash_at_) {
    // The write under way when the power went may have reached the disk's cache.
    if (bytes_kept != nullptr && n == *crash_at_) *bytes_kept = SIZE_MAX;
    return EIO;
  }
  const auto fault = faults_.find(n);
  if (fault == faults_.end()) return 0;
  if (bytes_kept != nullptr) *bytes_kept = fault->second.bytes_kept;
  return fault->second.errno_value;
}

std::uint64_t FaultyDisk::used_bytes() const {
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

void FaultyDisk::store(const std::string& path, const std::vector<std::byte>& bytes) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out.write(reinterpret_cast<const char*>(bytes.data()),
            static_cast<std::streamsize>(bytes.size()));
}

void FaultyDisk::apply(std::vector<std::byte>& contents, const Change& change, std::size_t first,
                       std::size_t count) {
  if (count == 0) return;
  const std::size_t end = change.offset + first + count;
  if (contents.size() < end) contents.resize(end);
  std::memcpy(contents.data() + change.offset + first, change.bytes.data() + first, count);
}

void FaultyDisk::crash(std::uint64_t seed) {
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
}

std::unique_ptr<io::FileSystem> FaultyDisk::file_system() {
  return std::make_unique<FaultyFileSystem>(*this);
}

}  // namespace vmshadow::test
