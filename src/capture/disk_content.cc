#include "capture/disk_content.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <libnbd.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>
#include <utility>

namespace vmshadow::capture {
namespace {

constexpr int kForEver = -1;

tl::unexpected<Error> fail_nbd() {
  return fail(Errc::io, fmt::format("reading a disk through QEMU: {}", nbd_get_error()));
}

class ExportedDisk final : public DiskContent {
 public:
  struct Close {
    void operator()(nbd_handle* handle) const { nbd_close(handle); }
  };
  using Handle = std::unique_ptr<nbd_handle, Close>;

  ExportedDisk(Handle handle, UniqueFd for_shut_down, std::uint64_t disk_bytes)
      : handle_(std::move(handle)),
        for_shut_down_(std::move(for_shut_down)),
        disk_bytes_(disk_bytes) {}

  Status read(std::span<const PageNumber> pages, std::span<std::byte> contents) override {
    std::vector<std::uint64_t> cookies;
    for (std::size_t i = 0; i < pages.size(); ++i) {
      const std::uint64_t offset = pages[i].value * kPageBytes;
      const std::uint64_t bytes = std::min<std::uint64_t>(kPageBytes, disk_bytes_ - offset);
      const auto into = contents.subspan(i * kPageBytes, kPageBytes);
      std::memset(into.data() + bytes, 0, kPageBytes - bytes);
      const std::int64_t cookie =
          nbd_aio_pread(handle_.get(), into.data(), bytes, offset, NBD_NULL_COMPLETION, 0);
      if (cookie < 0) return fail_nbd();
      cookies.push_back(static_cast<std::uint64_t>(cookie));
    }
    for (const std::uint64_t cookie : cookies) {
      int completed = 0;
      while ((completed = nbd_aio_command_completed(handle_.get(), cookie)) == 0) {
        if (nbd_poll(handle_.get(), kForEver) < 0) return fail_nbd();
      }
      if (completed < 0) return fail_nbd();
    }
    return {};
  }
  void close() override { ::shutdown(for_shut_down_.get(), SHUT_RDWR); }

 private:
  const Handle handle_;
  const UniqueFd for_shut_down_;
  const std::uint64_t disk_bytes_;
};

class RawImage final : public DiskContent {
 public:
  explicit RawImage(UniqueFd file) : file_(std::move(file)), page_(aligned_page()) {}

  Status read(std::span<const PageNumber> pages, std::span<std::byte> contents) override {
    for (std::size_t i = 0; i < pages.size(); ++i) {
      if (closed_) return fail(Errc::closed, "told to stop reading the disk");
      std::memset(page_.get(), 0, kPageBytes);
      const auto offset = static_cast<off_t>(pages[i].value * kPageBytes);
      const ssize_t got = ::pread(file_.get(), page_.get(), kPageBytes, offset);
      if (got < 0) return fail_errno(errno, "reading the disk's image");
      std::memcpy(contents.data() + i * kPageBytes, page_.get(), kPageBytes);
    }
    return {};
  }
  void close() override { closed_ = true; }

 private:
  struct Free {
    void operator()(std::byte* memory) const { std::free(memory); }
  };
  static std::unique_ptr<std::byte, Free> aligned_page() {
    return std::unique_ptr<std::byte, Free>(
        static_cast<std::byte*>(std::aligned_alloc(kPageBytes, kPageBytes)));
  }

  const UniqueFd file_;
  const std::unique_ptr<std::byte, Free> page_;
  std::atomic<bool> closed_{false};
};

/// The flags of an open file of another process's.
std::optional<int> open_flags(int pid, const std::string& fd) {
  std::ifstream file(fmt::format("/proc/{}/fdinfo/{}", pid, fd));
  for (std::string word; file >> word;) {
    int flags = 0;
    if (word == "flags:" && file >> std::oct >> flags) return flags;
  }
  return std::nullopt;
}

bool is_same_file(const struct stat& a, const struct stat& b) {
  if (S_ISBLK(a.st_mode) && S_ISBLK(b.st_mode)) return a.st_rdev == b.st_rdev;
  return a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

}  // namespace

Result<std::unique_ptr<DiskContent>> open_export(UniqueFd connection,
                                                 const std::string& export_name,
                                                 std::uint64_t disk_bytes) {
  UniqueFd second(::fcntl(connection.get(), F_DUPFD_CLOEXEC, 0));
  if (!second) return fail_errno(errno, "a connection to the disk");
  ExportedDisk::Handle handle(nbd_create());
  if (!handle || nbd_set_export_name(handle.get(), export_name.c_str()) != 0 ||
      nbd_connect_socket(handle.get(), connection.release()) != 0) {
    return fail_nbd();
  }
  const std::int64_t bytes = nbd_get_size(handle.get());
  if (bytes != static_cast<std::int64_t>(disk_bytes)) {
    return fail(Errc::protocol,
                fmt::format("QEMU exports {} bytes of a disk of {}", bytes, disk_bytes));
  }
  return std::make_unique<ExportedDisk>(std::move(handle), std::move(second), disk_bytes);
}

Result<std::unique_ptr<DiskContent>> open_raw_image(int qemu_pid, const std::string& path,
                                                    std::uint64_t disk_bytes) {
  // As QEMU sees it: it may have a file system of its own.
  const std::string seen =
      fmt::format("/proc/{}/{}{}", qemu_pid, path.starts_with('/') ? "root" : "cwd/", path);
  struct stat image {};
  if (::stat(seen.c_str(), &image) != 0) return fail_errno(errno, "the disk's image " + path);
  std::error_code error;
  for (const auto& entry :
       std::filesystem::directory_iterator(fmt::format("/proc/{}/fd", qemu_pid), error)) {
    struct stat open_file {};
    if (::stat(entry.path().c_str(), &open_file) != 0 || !is_same_file(image, open_file)) continue;
    const auto flags = open_flags(qemu_pid, entry.path().filename());
    if (!flags) continue;
    UniqueFd file(::open(entry.path().c_str(), O_RDONLY | O_CLOEXEC | (*flags & O_DIRECT)));
    if (!file) return fail_errno(errno, "opening the disk's image " + path);
    const off_t end = ::lseek(file.get(), 0, SEEK_END);
    // Of the last sector QEMU shows the guest all.
    if (end < 0 || static_cast<std::uint64_t>(end) + 511 < disk_bytes) {
      return fail(Errc::protocol,
                  fmt::format("the image {} has {} bytes, its disk {}", path, end, disk_bytes));
    }
    return std::make_unique<RawImage>(std::move(file));
  }
  return fail(Errc::not_found, fmt::format("QEMU (process {}) does not have the disk's image {} "
                                           "open",
                                           qemu_pid, path));
}

}  // namespace vmshadow::capture
