#include "io/append_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/uio.h>

#include <cerrno>
#include <cstdio>
#include <vector>

#include "base/unique_fd.h"
#include "io/file.h"
#include "io/uring.h"

namespace vmshadow::io {
namespace {

Status write_with_syscalls(int fd, std::span<const ByteSpan> pieces, std::uint64_t offset,
                           bool sync) {
  for (ByteSpan piece : pieces) {
    while (!piece.empty()) {
      const ssize_t n = ::pwrite(fd, piece.data(), piece.size(), static_cast<off_t>(offset));
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) return fail_errno(n == 0 ? EIO : errno, "writing");
      offset += static_cast<std::uint64_t>(n);
      piece = piece.subspan(static_cast<std::size_t>(n));
    }
  }
  if (sync && ::fdatasync(fd) != 0) return fail_errno(errno, "writing");
  return {};
}

class RealFile final : public AppendFile {
 public:
  RealFile(UniqueFd fd, std::string path, Uring* uring)
      : fd_(std::move(fd)), path_(std::move(path)), uring_(uring) {}

  Status write(std::span<const ByteSpan> pieces, std::uint64_t offset,
               Durability durability) override {
    const bool sync = durability == Durability::durable;
    auto done = uring_ != nullptr ? uring_->write(fd_.get(), pieces, offset, sync)
                                  : write_with_syscalls(fd_.get(), pieces, offset, sync);
    if (!done) return fail(std::move(done).error().with_context(fmt::format("'{}'", path_)));
    return {};
  }

  Status truncate(std::uint64_t bytes) override {
    if (::ftruncate(fd_.get(), static_cast<off_t>(bytes)) != 0 || ::fdatasync(fd_.get()) != 0) {
      return fail_errno(errno, fmt::format("truncating '{}' to {} bytes", path_, bytes));
    }
    return {};
  }

 private:
  UniqueFd fd_;
  std::string path_;
  Uring* uring_;
};

class RealFileSystem final : public FileSystem {
 public:
  explicit RealFileSystem(std::unique_ptr<Uring> uring) : uring_(std::move(uring)) {}

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

 private:
  Result<std::unique_ptr<AppendFile>> open_with(const std::string& path, int flags,
                                                std::string_view doing) {
    UniqueFd fd(::open(path.c_str(), O_RDWR | O_CLOEXEC | flags, 0600));
    if (!fd) return fail_errno(errno, fmt::format("{} '{}'", doing, path));
    return std::make_unique<RealFile>(std::move(fd), path, uring_.get());
  }

  std::unique_ptr<Uring> uring_;  // null: system calls
};

}  // namespace

Result<std::unique_ptr<FileSystem>> make_file_system(FileBackend backend) {
  std::unique_ptr<Uring> uring;
  if (backend != FileBackend::syscalls) {
    auto created = Uring::create();
    if (created) {
      uring = std::move(*created);
    } else if (backend == FileBackend::uring || created.error().code != Errc::unsupported) {
      return fail(std::move(created).error());
    }
  }
  return std::make_unique<RealFileSystem>(std::move(uring));
}

}  // namespace vmshadow::io
