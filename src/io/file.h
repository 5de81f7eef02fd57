// Files and directories as the store sees them: reading ranges, listing, locking, making names
// durable.
//
// Reads are pread(2) and safe from any thread. Writing goes through io/append_file.h.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <vmshadow/result.h>
#include <vmshadow/types.h>

#include "base/unique_fd.h"

namespace vmshadow::io {

/// Opens a regular file for reading. Errc::not_found, Errc::permission, …
[[nodiscard]] Result<UniqueFd> open_for_reading(const std::string& path);
/// The same with a shared lock (flock) on it until it is closed: nobody gets lock_for_rewriting()
/// meanwhile. Errc::not_found also if the path does not name that file any more or it is about to
/// be rewritten. Where the file system knows no locks it is opened without: lock_for_rewriting()
/// then fails as well.
[[nodiscard]] Result<UniqueFd> open_shared(const std::string& path);
/// The lock that open_shared() keeps others from. Errc::in_use if somebody has the file open so, or
/// it has another name besides (a copy made of hard links). Errc::io where there are no such locks.
[[nodiscard]] Result<UniqueFd> lock_for_rewriting(const std::string& path);
[[nodiscard]] Result<std::uint64_t> file_bytes(int fd);
/// Reads up to `into.size()` bytes from `offset`; fewer only at the end of the file.
[[nodiscard]] Result<std::size_t> read_at(int fd, std::uint64_t offset, MutableByteSpan into);
/// The open file once more, for reads past the page cache (O_DIRECT: of whole blocks, see
/// io/aligned_buffer.h, into such memory). Empty if its file system has none.
[[nodiscard]] UniqueFd open_past_cache(int fd);
/// Whether all of this range is in the page cache. False if the kernel does not say.
[[nodiscard]] bool is_cached(int fd, std::uint64_t offset, std::uint64_t bytes);
/// A whole small file; Errc::corrupt if it is longer than `bytes_max`.
[[nodiscard]] Result<std::string> read_small_file(const std::string& path, std::size_t bytes_max);

/// The names in a directory, sorted, without "." and "..". Errc::not_found if there is no such
/// directory, Errc::invalid_argument if `path` is something else.
[[nodiscard]] Result<std::vector<std::string>> list_directory(const std::string& path);
/// Makes a directory (mode 0700) unless it is there. The parent must exist.
[[nodiscard]] Status make_directory(const std::string& path);
/// Makes the names in a directory durable.
[[nodiscard]] Status sync_directory(const std::string& path);
/// What an unprivileged process may still write to the file system of `path`.
[[nodiscard]] Result<std::uint64_t> free_bytes(const std::string& path);
/// The size of the file system of `path`.
[[nodiscard]] Result<std::uint64_t> file_system_bytes(const std::string& path);
/// Whether both are there and the same directory, however they are spelled.
[[nodiscard]] bool is_same_directory(const std::string& a, const std::string& b);

/// An exclusive lock on a file, held until destroyed or the process ends. The file carries the
/// holder's process id, for messages.
class FileLock {
 public:
  /// Errc::in_use if another open file holds it; the message names that process.
  [[nodiscard]] static Result<FileLock> acquire(const std::string& path);

 private:
  explicit FileLock(UniqueFd fd) : fd_(std::move(fd)) {}
  UniqueFd fd_;
};

}  // namespace vmshadow::io
