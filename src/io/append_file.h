// The seam between the store's log and the disk: files written front to back and made durable.
//
// The real one is io_uring (io/uring.h) or, where the kernel refuses it, system calls; both behave
// the same. Writes of whole blocks (kDirectBlockBytes: offset and total length) go past the page
// cache where the directory allows it (io/direct_io.h), all others through it; callers see no
// difference but the speed. Tests put a failing, tearing disk behind it.
//
// Threads: one thread at a time uses a FileSystem and the files it made (but for AppendFile::sync),
// and the FileSystem outlives them. Threads that write side by side (journal, archiver, scrubber)
// each make their own; two of them may not have the same file open for writing.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include <vmshadow/result.h>
#include <vmshadow/types.h>

#include "io/direct_io.h"

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
  /// that was not before. Errc::no_space if the disk is full. The pieces may lie anywhere in
  /// memory; those that are whole blocks at block addresses (io/aligned_buffer.h) are not copied.
  [[nodiscard]] virtual Status write(std::span<const ByteSpan> pieces, std::uint64_t offset,
                                     Durability durability) = 0;
  /// Begins such a write without waiting for it: the disk works at it while the caller makes the
  /// next. The pieces stay as they are until it is finished. Nothing else is done to the file
  /// before all that was begun is finished, but to begin more, preallocate(), and sync(), which
  /// covers what was finished before.
  virtual void begin_write(std::span<const ByteSpan> pieces, std::uint64_t offset) = 0;
  /// Waits for the oldest write that was begun: how it ended. Those behind it go on.
  [[nodiscard]] virtual Status finish_write() = 0;
  /// Whether that would return at once; one was begun.
  [[nodiscard]] virtual bool finishes_at_once() = 0;
  /// Makes durable all that was written before. It alone may run on another thread beside write(),
  /// preallocate() or truncate(): what these do meanwhile, it may cover or not.
  [[nodiscard]] virtual Status sync() = 0;
  /// Cuts the file to `bytes`, gives back what was reserved behind them and makes that durable.
  [[nodiscard]] virtual Status truncate(std::uint64_t bytes) = 0;
  /// Reserves disk space for the file up to `end` and makes it so large, the rest zero: writes up
  /// to there need no allocation, change no size, and so need not wait for one another. Durable
  /// with the next sync. Only an offer: where it fails (Errc::unsupported, Errc::no_space) writes
  /// go on as before.
  [[nodiscard]] virtual Status preallocate(std::uint64_t end) = 0;
};

/// What this kernel lets a FileSystem do, for logs and status.
struct FileFeatures {
  bool uring = false;
  bool fixed_buffers = false;  ///< direct writes come from registered memory
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

  [[nodiscard]] virtual FileFeatures features() const { return {}; }
  /// Whether files of `directory` are written past the page cache; probed once for each.
  [[nodiscard]] virtual DirectSupport direct_support(const std::string& directory) = 0;
};

enum class FileBackend {
  automatic,  ///< io_uring, or system calls where the kernel or a sandbox refuses it
  uring,      ///< io_uring or an error
  syscalls,   ///< pwrite and fdatasync
};

enum class DirectIo {
  automatic,  ///< wherever the directory allows it
  off,
};

[[nodiscard]] Result<std::unique_ptr<FileSystem>> make_file_system(
    FileBackend backend, DirectIo direct = DirectIo::automatic);

/// One line for a log: "io_uring with fixed buffers, O_DIRECT in '/var/lib/vmshadow'".
[[nodiscard]] std::string features_text(FileSystem& files, const std::string& directory);

}  // namespace vmshadow::io
