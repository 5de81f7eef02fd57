#include "io/append_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstdio>
#include <deque>
#include <filesystem>
#include <map>
#include <variant>
#include <vector>

#include "base/assert.h"
#include "base/unique_fd.h"
#include "io/aligned_buffer.h"
#include "io/file.h"
#include "io/gather.h"
#include "io/uring.h"

namespace vmshadow::io {
namespace {

/// 0 or an errno. Advances `piece` and `offset` past what was written.
int pwrite_all(int fd, ByteSpan& piece, std::uint64_t& offset) {
  while (!piece.empty()) {
    const ssize_t n = ::pwrite(fd, piece.data(), piece.size(), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return n == 0 ? EIO : errno;
    offset += static_cast<std::uint64_t>(n);
    piece = piece.subspan(static_cast<std::size_t>(n));
  }
  return 0;
}

Status sync_data(int fd) {
  if (::fdatasync(fd) != 0) return fail_errno(errno, "writing");
  return {};
}

/// Writing without io_uring.
class SyscallWriter {
 public:
  Status write(int fd, std::span<const ByteSpan> pieces, std::uint64_t offset, bool sync) {
    for (ByteSpan piece : pieces) {
      if (const int error = pwrite_all(fd, piece, offset)) return fail_errno(error, "writing");
    }
    return sync ? sync_data(fd) : Status();
  }
  Status write_direct(int fd, int buffered_fd, std::span<const ByteSpan> pieces,
                      std::uint64_t offset, bool sync) {
    if (staging_.size() == 0) staging_ = AlignedBuffer(kDirectChunkBytes);
    for (Gather gather(pieces); !gather.done();) {
      ByteSpan chunk = gather.next(staging_.span());
      int error = pwrite_all(fd, chunk, offset);
      // What the file does not take directly (after a short write, say) goes the other way.
      if (error == EINVAL) error = pwrite_all(buffered_fd, chunk, offset);
      if (error != 0) return fail_errno(error, "writing");
    }
    return sync ? sync_data(fd) : Status();
  }

 private:
  AlignedBuffer staging_;
};

class RealFile final : public AppendFile {
 public:
  /// `direct` is the same file without the page cache, if it has that.
  RealFile(UniqueFd fd, UniqueFd direct, std::string path, Uring* uring, SyscallWriter& syscalls)
      : fd_(std::move(fd)),
        direct_(std::move(direct)),
        path_(std::move(path)),
        uring_(uring),
        syscalls_(syscalls) {}
  ~RealFile() override {
    while (!begun_.empty()) static_cast<void>(finish_write());
  }

  Status write(std::span<const ByteSpan> pieces, std::uint64_t offset,
               Durability durability) override {
    const bool sync = durability == Durability::durable;
    const bool direct = direct_ && is_whole_blocks(pieces, offset);
    auto done = uring_ != nullptr ? write_with(*uring_, direct, pieces, offset, sync)
                                  : write_with(syscalls_, direct, pieces, offset, sync);
    if (!done) return fail(std::move(done).error().with_context(fmt::format("'{}'", path_)));
    return {};
  }

  void begin_write(std::span<const ByteSpan> pieces, std::uint64_t offset) override {
    if (direct_ && uring_ != nullptr && is_whole_blocks(pieces, offset)) {
      begun_.emplace_back(uring_->begin_direct(direct_.get(), fd_.get(), pieces, offset));
    } else {
      begun_.emplace_back(write(pieces, offset, Durability::buffered));
    }
  }

  Status finish_write() override {
    VMSHADOW_ASSERT(!begun_.empty());
    const auto oldest = std::move(begun_.front());
    begun_.pop_front();
    if (const auto* done = std::get_if<Status>(&oldest)) return *done;
    auto done = uring_->finish_direct(std::get<Uring::Begun>(oldest));
    if (!done) return fail(std::move(done).error().with_context(fmt::format("'{}'", path_)));
    return {};
  }

  bool finishes_at_once() override {
    VMSHADOW_ASSERT(!begun_.empty());
    const auto* begun = std::get_if<Uring::Begun>(&begun_.front());
    return begun == nullptr || uring_->is_done(*begun);
  }

  Status sync() override {
    if (auto done = sync_data(fd_.get()); !done) {
      return fail(std::move(done).error().with_context(fmt::format("'{}'", path_)));
    }
    return {};
  }

  Status truncate(std::uint64_t bytes) override {
    if (::ftruncate(fd_.get(), static_cast<off_t>(bytes)) != 0 || ::fdatasync(fd_.get()) != 0) {
      return fail_errno(errno, fmt::format("truncating '{}' to {} bytes", path_, bytes));
    }
    return {};
  }

  Status preallocate(std::uint64_t end) override {
    VMSHADOW_ASSIGN(const std::uint64_t now, file_bytes(fd_.get()));
    if (end <= now) return {};
    if (::fallocate(fd_.get(), 0, static_cast<off_t>(now), static_cast<off_t>(end - now)) == 0) {
      return {};
    }
    if (errno == EOPNOTSUPP || errno == ENOSYS || errno == ENODEV) {
      return fail(Errc::unsupported, fmt::format("'{}' cannot be given space in advance", path_));
    }
    return fail_errno(errno, fmt::format("reserving {} bytes for '{}'", end - now, path_));
  }

 private:
  static bool is_whole_blocks(std::span<const ByteSpan> pieces, std::uint64_t offset) {
    std::uint64_t bytes = 0;
    for (const ByteSpan piece : pieces) bytes += piece.size();
    return bytes > 0 && is_block_aligned(offset) && is_block_aligned(bytes);
  }
  template <class Writer>
  Status write_with(Writer& writer, bool direct, std::span<const ByteSpan> pieces,
                    std::uint64_t offset, bool sync) {
    return direct ? writer.write_direct(direct_.get(), fd_.get(), pieces, offset, sync)
                  : writer.write(fd_.get(), pieces, offset, sync);
  }

  UniqueFd fd_;
  UniqueFd direct_;
  std::string path_;
  Uring* uring_;
  SyscallWriter& syscalls_;
  std::deque<std::variant<Status, Uring::Begun>> begun_;
};

class RealFileSystem final : public FileSystem {
 public:
  RealFileSystem(std::unique_ptr<Uring> uring, DirectIo direct)
      : uring_(std::move(uring)), direct_(direct) {
    if (uring_ != nullptr && direct_ != DirectIo::off) uring_->prepare_direct_writes();
  }

  Result<std::unique_ptr<AppendFile>> create(const std::string& path) override {
    return open_with(path, O_CREAT | O_EXCL, "creating");
  }
  Result<std::unique_ptr<AppendFile>> open(const std::string& path) override {
    return open_with(path, 0, "opening");
  }
  Status rename(const std::string& from, const std::string& to) override {
    if (::rename(from.c_str(), to.c_str()) != 0) {
      return fail_errno(errno, fmt::format("renaming '{}' to '{}'", from, to));
    }
    return {};
  }
  Status remove(const std::string& path) override {
    if (::unlink(path.c_str()) != 0) return fail_errno(errno, fmt::format("removing '{}'", path));
    return {};
  }
  Status sync_directory(const std::string& path) override { return io::sync_directory(path); }

  [[nodiscard]] FileFeatures features() const override {
    return {uring_ != nullptr, uring_ != nullptr && uring_->has_fixed_buffers()};
  }
  DirectSupport direct_support(const std::string& directory) override {
    if (direct_ == DirectIo::off) return {false, 0, "it is switched off"};
    const auto found = probed_.find(directory);
    if (found != probed_.end()) return found->second;
    return probed_.emplace(directory, probe_direct_writes(directory)).first->second;
  }

 private:
  Result<std::unique_ptr<AppendFile>> open_with(const std::string& path, int flags,
                                                std::string_view doing) {
    UniqueFd fd(::open(path.c_str(), O_RDWR | O_CLOEXEC | flags, 0600));
    if (!fd) return fail_errno(errno, fmt::format("{} '{}'", doing, path));
    UniqueFd direct = open_direct(fd.get(), path);
    return std::make_unique<RealFile>(std::move(fd), std::move(direct), path, uring_.get(),
                                      syscalls_);
  }
  /// The open file once more, for direct writes; none where that does not work.
  UniqueFd open_direct(int fd, const std::string& path) {
    struct stat status {};
    if (::fstat(fd, &status) != 0 || !S_ISREG(status.st_mode)) return {};
    const std::filesystem::path parent = std::filesystem::path(path).parent_path();
    if (!direct_support(parent.empty() ? "." : parent.string()).works) return {};
    const std::string same = fmt::format("/proc/self/fd/{}", fd);
    UniqueFd direct(::open(same.c_str(), O_RDWR | O_CLOEXEC | O_DIRECT));
    if (!direct) direct.reset(::open(path.c_str(), O_RDWR | O_CLOEXEC | O_DIRECT));
    return direct;
  }

  std::unique_ptr<Uring> uring_;  // null: system calls
  SyscallWriter syscalls_;
  const DirectIo direct_;
  std::map<std::string, DirectSupport> probed_;
};

}  // namespace

Result<std::unique_ptr<FileSystem>> make_file_system(FileBackend backend, DirectIo direct) {
  std::unique_ptr<Uring> uring;
  if (backend != FileBackend::syscalls) {
    auto created = Uring::create();
    if (created) {
      uring = std::move(*created);
    } else if (backend == FileBackend::uring || created.error().code != Errc::unsupported) {
      return fail(std::move(created).error());
    }
  }
  return std::make_unique<RealFileSystem>(std::move(uring), direct);
}

std::string features_text(FileSystem& files, const std::string& directory) {
  const FileFeatures features = files.features();
  const DirectSupport direct = files.direct_support(directory);
  std::string text = !features.uring          ? "system calls"
                     : features.fixed_buffers ? "io_uring with fixed buffers"
                                              : "io_uring";
  text += direct.works
              ? fmt::format(", O_DIRECT in '{}'", directory)
              : fmt::format(", page cache in '{}' (O_DIRECT: {})", directory, direct.why_not);
  return text;
}

}  // namespace vmshadow::io
