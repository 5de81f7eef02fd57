#include "io/file.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <string_view>
#include <vector>

namespace vmshadow::io {
namespace {

Result<UniqueFd> open_path(const std::string& path, int flags, mode_t mode = 0) {
  UniqueFd fd(::open(path.c_str(), flags | O_CLOEXEC, mode));
  if (!fd) return fail_errno(errno, fmt::format("opening '{}'", path));
  return fd;
}

}  // namespace

Result<UniqueFd> open_for_reading(const std::string& path) { return open_path(path, O_RDONLY); }

Result<UniqueFd> open_shared(const std::string& path) {
  VMSHADOW_ASSIGN(UniqueFd fd, open_for_reading(path));
  const auto gone = [&] {
    return fail(Errc::not_found, fmt::format("'{}' was given up just now", path));
  };
  if (::flock(fd.get(), LOCK_SH | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK) return gone();
    return fd;  // no locks here
  }
  // It may have been given up, and even be something else by now, before we had the lock.
  struct stat opened {};
  struct stat named {};
  if (::fstat(fd.get(), &opened) != 0) return fail_errno(errno, fmt::format("opening '{}'", path));
  if (::stat(path.c_str(), &named) != 0)
    return fail_errno(errno, fmt::format("opening '{}'", path));
  if (opened.st_dev != named.st_dev || opened.st_ino != named.st_ino) return gone();
  return fd;
}

Result<UniqueFd> lock_for_rewriting(const std::string& path) {
  VMSHADOW_ASSIGN(UniqueFd fd, open_path(path, O_RDWR));
  if (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return fail_errno(errno, fmt::format("locking '{}'", path));
    return fail(Errc::in_use, fmt::format("'{}' is being read", path));
  }
  struct stat status {};
  if (::fstat(fd.get(), &status) != 0) return fail_errno(errno, fmt::format("locking '{}'", path));
  if (status.st_nlink != 1) {
    return fail(Errc::in_use, fmt::format("'{}' has {} names", path, status.st_nlink));
  }
  return fd;
}

Result<std::uint64_t> file_bytes(int fd) {
  struct stat status {};
  if (::fstat(fd, &status) != 0) return fail_errno(errno, "reading a file's size");
  return static_cast<std::uint64_t>(status.st_size);
}

Result<std::size_t> read_at(int fd, std::uint64_t offset, MutableByteSpan into) {
  std::size_t done = 0;
  while (done < into.size()) {
    const ssize_t n =
        ::pread(fd, into.data() + done, into.size() - done, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail_errno(errno, fmt::format("reading at offset {}", offset + done));
    if (n == 0) break;
    done += static_cast<std::size_t>(n);
  }
  return done;
}

UniqueFd open_past_cache(int fd) {
  // By its number, not by its name: that may be gone, or another file's by now.
  return UniqueFd(
      ::open(fmt::format("/proc/self/fd/{}", fd).c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT));
}

bool is_cached(int fd, std::uint64_t offset, std::uint64_t bytes) {
  const auto page = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  const std::uint64_t begin = offset / page * page;
  const auto length = static_cast<std::size_t>(offset + bytes - begin);
  if (bytes == 0) return true;
  void* const map = ::mmap(nullptr, length, PROT_READ, MAP_SHARED, fd, static_cast<off_t>(begin));
  if (map == MAP_FAILED) return false;
  std::vector<unsigned char> resident((length + page - 1) / page);
  const bool told = ::mincore(map, length, resident.data()) == 0;
  ::munmap(map, length);
  return told && std::all_of(resident.begin(), resident.end(),
                             [](unsigned char flags) { return (flags & 1) != 0; });
}

Result<std::string> read_small_file(const std::string& path, std::size_t bytes_max) {
  VMSHADOW_ASSIGN(const UniqueFd fd, open_for_reading(path));
  std::string text(bytes_max + 1, '\0');
  auto got = read_at(fd.get(), 0, std::as_writable_bytes(std::span(text)));
  if (!got) return fail(std::move(got).error().with_context(fmt::format("'{}'", path)));
  if (*got > bytes_max) {
    return fail(Errc::corrupt, fmt::format("'{}' is longer than {} bytes", path, bytes_max));
  }
  text.resize(*got);
  return text;
}

Result<std::vector<std::string>> list_directory(const std::string& path) {
  struct Closer {
    void operator()(DIR* dir) const { ::closedir(dir); }
  };
  const std::unique_ptr<DIR, Closer> dir(::opendir(path.c_str()));
  if (!dir) {
    if (errno == ENOTDIR) {
      return fail(Errc::invalid_argument, fmt::format("'{}' is not a directory", path));
    }
    return fail_errno(errno, fmt::format("listing '{}'", path));
  }
  std::vector<std::string> names;
  errno = 0;
  while (const dirent* entry = ::readdir(dir.get())) {
    const std::string_view name = entry->d_name;
    if (name != "." && name != "..") names.emplace_back(name);
    errno = 0;
  }
  if (errno != 0) return fail_errno(errno, fmt::format("listing '{}'", path));
  std::sort(names.begin(), names.end());
  return names;
}

Status make_directory(const std::string& path) {
  if (::mkdir(path.c_str(), 0700) == 0) return {};
  if (errno != EEXIST) return fail_errno(errno, fmt::format("making directory '{}'", path));
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0) return fail_errno(errno, fmt::format("'{}'", path));
  if (!S_ISDIR(status.st_mode)) {
    return fail(Errc::invalid_argument, fmt::format("'{}' is not a directory", path));
  }
  return {};
}

Status sync_directory(const std::string& path) {
  VMSHADOW_ASSIGN(const UniqueFd fd, open_path(path, O_RDONLY | O_DIRECTORY));
  if (::fsync(fd.get()) != 0) return fail_errno(errno, fmt::format("syncing '{}'", path));
  return {};
}

namespace {
Result<struct statvfs> file_system_of(const std::string& path) {
  struct statvfs status {};
  if (::statvfs(path.c_str(), &status) != 0) {
    return fail_errno(errno, fmt::format("asking for the space of '{}'", path));
  }
  return status;
}
}  // namespace

Result<std::uint64_t> free_bytes(const std::string& path) {
  VMSHADOW_ASSIGN(const auto status, file_system_of(path));
  return static_cast<std::uint64_t>(status.f_bavail) * status.f_frsize;
}

Result<std::uint64_t> file_system_bytes(const std::string& path) {
  VMSHADOW_ASSIGN(const auto status, file_system_of(path));
  return static_cast<std::uint64_t>(status.f_blocks) * status.f_frsize;
}

bool is_same_directory(const std::string& a, const std::string& b) {
  struct stat of_a {};
  struct stat of_b {};
  return ::stat(a.c_str(), &of_a) == 0 && ::stat(b.c_str(), &of_b) == 0 && S_ISDIR(of_a.st_mode) &&
         of_a.st_dev == of_b.st_dev && of_a.st_ino == of_b.st_ino;
}

Result<FileLock> FileLock::acquire(const std::string& path) {
  VMSHADOW_ASSIGN(UniqueFd fd, open_path(path, O_RDWR | O_CREAT, 0600));
  if (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return fail_errno(errno, fmt::format("locking '{}'", path));
    auto holder = read_small_file(path, 64);
    const std::string pid = holder && !holder->empty() ? *holder : std::string("unknown");
    return fail(Errc::in_use,
                fmt::format("'{}' is locked by process {}", path, pid.substr(0, pid.find('\n'))));
  }
  // Only for messages: losing it to a crash or a full disk does no harm.
  const std::string pid = fmt::format("{}\n", ::getpid());
  if (::ftruncate(fd.get(), 0) == 0) {
    [[maybe_unused]] const ssize_t n = ::pwrite(fd.get(), pid.data(), pid.size(), 0);
  }
  return FileLock(std::move(fd));
}

}  // namespace vmshadow::io
