#include "support/host.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <malloc.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>
#include <utility>

#include "base/unique_fd.h"

namespace vmshadow::bench {
namespace {

namespace fs = std::filesystem;

constexpr const char* kDropCaches = "/proc/sys/vm/drop_caches";

Status evict_file(const std::string& path) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return {};  // removed in the meantime
  if (::fdatasync(fd.get()) != 0) return fail_errno(errno, "syncing '" + path + "'");
  if (const int error = ::posix_fadvise(fd.get(), 0, 0, POSIX_FADV_DONTNEED); error != 0) {
    return fail_errno(error, "evicting '" + path + "'");
  }
  return {};
}

std::string first_match(const char* file, const std::string& start) {
  std::ifstream lines(file);
  std::string line;
  while (std::getline(lines, line)) {
    if (!line.starts_with(start)) continue;
    const auto colon = line.find(':');
    const auto word = line.find_first_not_of(" \t", colon + 1);
    return word == std::string::npos ? std::string() : line.substr(word);
  }
  return "unknown";
}

}  // namespace

bool can_drop_all_caches() { return ::access(kDropCaches, W_OK) == 0; }

Status evict_files(const std::string& directory) {
  std::error_code error;
  for (fs::recursive_directory_iterator it(directory, error), end; !error && it != end;
       it.increment(error)) {
    if (it->is_regular_file(error)) VMSHADOW_TRY(evict_file(it->path()));
  }
  return {};
}

Status drop_caches(const std::string& directory) {
  VMSHADOW_TRY(evict_files(directory));
  if (!can_drop_all_caches()) return {};
  const UniqueFd fd(::open(kDropCaches, O_WRONLY | O_CLOEXEC));
  if (!fd || ::write(fd.get(), "1\n", 2) != 2) return fail_errno(errno, "dropping the page cache");
  return {};
}

Status sync_file_system(const std::string& directory) {
  const UniqueFd fd(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd || ::syncfs(fd.get()) != 0) return fail_errno(errno, "syncing '" + directory + "'");
  return {};
}

Result<ProcessIo> process_io() {
  std::ifstream lines("/proc/self/io");
  ProcessIo io;
  std::string name;
  std::uint64_t value = 0;
  while (lines >> name >> value) {
    if (name == "syscr:") io.read_calls = value;
    if (name == "read_bytes:") io.read_bytes = value;
    if (name == "write_bytes:") io.written_bytes = value;
  }
  if (io.read_calls == 0) {
    return fail(Errc::unsupported, "this kernel does not count a process's input and output");
  }
  return io;
}

Result<std::string> device_of(const std::string& directory) {
  struct stat status {};
  if (::stat(directory.c_str(), &status) != 0) return fail_errno(errno, "'" + directory + "'");
  std::ifstream lines("/proc/diskstats");
  std::string line;
  while (std::getline(lines, line)) {
    std::istringstream words(line);
    unsigned major_number = 0;
    unsigned minor_number = 0;
    std::string name;
    words >> major_number >> minor_number >> name;
    if (major_number == major(status.st_dev) && minor_number == minor(status.st_dev)) return name;
  }
  return fail(Errc::unsupported,
              fmt::format("'{}' is on no device that /proc/diskstats lists", directory));
}

Result<DeviceReads> device_reads(const std::string& device) {
  std::ifstream lines("/proc/diskstats");
  std::string line;
  while (std::getline(lines, line)) {
    std::istringstream words(line);
    std::string name;
    std::uint64_t skipped = 0;
    DeviceReads reads;
    words >> skipped >> skipped >> name >> reads.reads >> skipped >> reads.bytes;
    if (name != device) continue;
    reads.bytes *= 512;
    return reads;
  }
  return fail(Errc::not_found, "no device " + device);
}

std::uint64_t bytes_under(const std::string& directory) {
  std::uint64_t bytes = 0;
  std::error_code error;
  for (fs::recursive_directory_iterator it(directory, error), end; !error && it != end;
       it.increment(error)) {
    std::error_code gone;
    const std::uintmax_t size = it->is_regular_file(gone) ? it->file_size(gone) : 0;
    if (!gone) bytes += size;
  }
  return bytes;
}

std::uint64_t heap_bytes() {
  const struct mallinfo2 info = ::mallinfo2();
  return info.uordblks + info.hblkhd;
}

std::string host_text() {
  struct utsname names {};
  ::uname(&names);
  return fmt::format("{} x {}, {} RAM, Linux {}", std::thread::hardware_concurrency(),
                     first_match("/proc/cpuinfo", "model name"),
                     first_match("/proc/meminfo", "MemTotal"), names.release);
}

Result<WorkDirectory> WorkDirectory::create_in(const std::string& parent) {
  std::error_code error;
  fs::create_directories(parent, error);
  if (error) return fail_errno(error.value(), "making '" + parent + "'");
  std::string path = fs::absolute(parent) / "vmshadow-bench-XXXXXX";
  if (::mkdtemp(path.data()) == nullptr) return fail_errno(errno, "making '" + path + "'");
  return WorkDirectory(std::move(path));
}

WorkDirectory::WorkDirectory(WorkDirectory&& other) noexcept
    : path_(std::exchange(other.path_, {})) {}

WorkDirectory::~WorkDirectory() {
  std::error_code ignored;
  if (!path_.empty()) fs::remove_all(path_, ignored);
}

Status remove_tree(const std::string& path) {
  std::error_code error;
  fs::remove_all(path, error);
  if (error) return fail_errno(error.value(), "removing '" + path + "'");
  return {};
}

}  // namespace vmshadow::bench
