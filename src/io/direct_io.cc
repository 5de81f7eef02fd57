#include "io/direct_io.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "io/aligned_buffer.h"

namespace vmshadow::io {
namespace {

/// A file that is gone when it is closed.
UniqueFd open_nameless(const std::string& directory) {
  UniqueFd fd(::open(directory.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC | O_DIRECT, 0600));
  if (fd || (errno != EOPNOTSUPP && errno != EISDIR && errno != ENOENT)) return fd;
  std::string path = directory + "/.direct-io-probe-XXXXXX";
  fd.reset(::mkostemp(path.data(), O_CLOEXEC | O_DIRECT));
  const int error = errno;
  if (fd) ::unlink(path.c_str());
  errno = error;
  return fd;
}

/// What the kernel says (since 6.1), or 0.
std::uint32_t stated_alignment(int fd) {
#ifdef STATX_DIOALIGN
  struct statx status {};
  if (::statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &status) == 0 &&
      (status.stx_mask & STATX_DIOALIGN) != 0) {
    return std::max(status.stx_dio_offset_align, status.stx_dio_mem_align);
  }
#else
  static_cast<void>(fd);
#endif
  return 0;
}

}  // namespace

DirectSupport probe_direct_writes(const std::string& directory) {
  DirectSupport support;
  const auto refused = [&](std::string why) {
    support.why_not = std::move(why);
    return support;
  };
  const UniqueFd fd = open_nameless(directory);
  if (!fd) return refused(std::strerror(errno));
  support.alignment = stated_alignment(fd.get());
  if (support.alignment > kDirectBlockBytes) {
    return refused(fmt::format("it asks for blocks of {} bytes", support.alignment));
  }
  AlignedBuffer block(kDirectBlockBytes);
  std::memset(block.data(), 0, block.size());
  const ssize_t n = ::pwrite(fd.get(), block.data(), block.size(), 0);
  if (n < 0) return refused(std::strerror(errno));
  if (n != static_cast<ssize_t>(block.size())) return refused("a block was written in part");
  support.works = true;
  return support;
}

}  // namespace vmshadow::io
