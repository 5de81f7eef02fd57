// The seam between the store's log and the disk: files written front to back and made durable.
//
// The real one is io_uring (io/uring.h) or, where the kernel refuses it, pwritev and fdatasync;
// both behave the same. Tests put a failing, tearing disk behind it. One thread at a time uses a
// FileSystem and the files it made; the FileSystem outlives them.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include <vmshadow/result.h>
#include <vmshadow/types.h>

namespace vmshadow::io {

enum class Durability {
  buffered,  ///< the bytes may still be lost by a crash of the host
  durable,   ///< these and all bytes written to the file before survive one
};

class AppendFile {
 public:
  virtual ~AppendFile() = default;
  /// Writes `pieces` one after the other from `offset`, all of them, then makes the file durable if
  /// asked. After an error any part of them may have been written, and nothing is known durable
  /// that was not before. Errc::no_space if the disk is full.
  [[nodiscard]] virtual Status write(std::span<const ByteSpan> pieces, std::uint64_t offset,
                                     Durability durability) = 0;
  /// Cuts the file to `bytes` and makes that durable.
  [[nodiscard]] virtual Status truncate(std::uint64_t bytes) = 0;
};

class FileSystem {
 public:
  virtual ~FileSystem() = default;
  /// Makes a new file (mode 0600). Errc::already_exists.
  [[nodiscard]] virtual Result<std::unique_ptr<AppendFile>> create(const std::string& path) = 0;
  [[nodiscard]] virtual Result<std::unique_ptr<AppendFile>> open(const std::string& path) = 0;
  [[nodiscard]] virtual Status rename(const std::string& from, const std::string& to) = 0;
  [[nodiscard]] virtual Status remove(const std::string& path) = 0;
  /// Makes what create(), rename() and remove() did in a directory durable.
  [[nodiscard]] virtual Status sync_directory(const std::string& path) = 0;
};

enum class FileBackend {
  automatic,  ///< io_uring, or system calls where the kernel or a sandbox refuses it
  uring,      ///< io_uring or an error
  syscalls,   ///< pwritev and fdatasync
};

[[nodiscard]] Result<std::unique_ptr<FileSystem>> make_file_system(FileBackend backend);

}  // namespace vmshadow::io
