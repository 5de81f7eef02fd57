// The machine under a benchmark: caches to be emptied, counters of what was read and written, and
// what to say about it in a report.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include <vmshadow/result.h>

namespace vmshadow::bench {

/// Whether drop_caches() can empty the whole page cache, or (not being root) only evicts the files
/// it is given.
[[nodiscard]] bool can_drop_all_caches();
/// Empties the page cache (echo 1 > /proc/sys/vm/drop_caches) where allowed, and evicts every file
/// under `directory` in any case. What is dirty is written first.
[[nodiscard]] Status drop_caches(const std::string& directory);
/// Evicts the files under `directory` alone; cheap enough to be done before every read.
[[nodiscard]] Status evict_files(const std::string& directory);

/// Writes whatever is dirty in the file system of `directory`, so that it does not disturb the next
/// measurement.
[[nodiscard]] Status sync_file_system(const std::string& directory);

/// Of this process, since it began (/proc/self/io).
struct ProcessIo {
  std::uint64_t read_calls{};
  std::uint64_t read_bytes{};     ///< fetched from a device
  std::uint64_t written_bytes{};  ///< to a device, now or when they are written back
};
[[nodiscard]] Result<ProcessIo> process_io();

/// The block device a directory is on, and what it did for everybody (/proc/diskstats).
struct DeviceReads {
  std::uint64_t reads{};
  std::uint64_t bytes{};
};
[[nodiscard]] Result<std::string> device_of(const std::string& directory);
[[nodiscard]] Result<DeviceReads> device_reads(const std::string& device);

/// Bytes of the regular files under `directory`.
[[nodiscard]] std::uint64_t bytes_under(const std::string& directory);
/// Heap in use by this process.
[[nodiscard]] std::uint64_t heap_bytes();

/// Processor, kernel, memory, on one line.
[[nodiscard]] std::string host_text();

/// A directory made for a run, removed with everything in it.
class WorkDirectory {
 public:
  [[nodiscard]] static Result<WorkDirectory> create_in(const std::string& parent);
  WorkDirectory(WorkDirectory&& other) noexcept;
  WorkDirectory& operator=(WorkDirectory&&) = delete;
  ~WorkDirectory();
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  explicit WorkDirectory(std::string path) : path_(std::move(path)) {}
  std::string path_;
};

/// Removes a directory and everything in it; that it cannot is an error.
[[nodiscard]] Status remove_tree(const std::string& path);

}  // namespace vmshadow::bench
