#include "support/ram_oracle.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/assert.h"
#include "base/unique_fd.h"
#include "qmp/commands.h"

namespace vmshadow::test {
namespace {

constexpr std::uint64_t kLowEnd = 0xa0000;
constexpr std::uint64_t kHighStart = 0x100000;

Status read_whole(const std::string& path, std::uint64_t bytes, std::vector<std::byte>& out) {
  const UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file) return fail_errno(errno, fmt::format("opening {}", path));
  out.resize(bytes);
  for (std::size_t at = 0; at < out.size();) {
    const ssize_t got = ::read(file.get(), out.data() + at, out.size() - at);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail_errno(errno, fmt::format("reading {}", path));
    if (got == 0) return fail(Errc::io, fmt::format("{} has {} of {} bytes", path, at, bytes));
    at += static_cast<std::size_t>(got);
  }
  return {};
}

}  // namespace

void RamComparison::add(const RamComparison& other) {
  pages += other.pages;
  stale += other.stale;
  if (!first_stale) first_stale = other.first_stale;
}

RamComparison compare_ram(ByteSpan image, ByteSpan ram, PageNumber first) {
  VMSHADOW_ASSERT(image.size() == ram.size() && image.size() % kPageBytes == 0);
  RamComparison result;
  result.pages = image.size() / kPageBytes;
  if (std::memcmp(image.data(), ram.data(), image.size()) == 0) return result;
  for (std::uint64_t page = 0; page < result.pages; ++page) {
    const std::size_t at = page * kPageBytes;
    if (std::memcmp(image.data() + at, ram.data() + at, kPageBytes) == 0) continue;
    ++result.stale;
    if (!result.first_stale) result.first_stale = PageNumber{first.value + page};
  }
  return result;
}

Result<std::unique_ptr<RamOracle>> RamOracle::connect(const std::string& observer_path) {
  VMSHADOW_ASSIGN(auto monitor, qmp::Session::connect(observer_path));
  std::unique_ptr<RamOracle> oracle(new RamOracle(std::move(monitor)));
  oracle->path_ =
      ::access("/dev/shm", W_OK) == 0 ? "/dev/shm/vmshadow-ram-XXXXXX" : "/tmp/vmshadow-ram-XXXXXX";
  const UniqueFd file(::mkstemp(oracle->path_.data()));
  if (!file) return fail_errno(errno, "making a file for the guest's RAM");
  return oracle;
}

RamOracle::~RamOracle() {
  if (!path_.empty()) ::unlink(path_.c_str());
}

Result<RamComparison> RamOracle::compare(ByteSpan image) {
  VMSHADOW_ASSERT(image.size() > kHighStart);
  VMSHADOW_TRY(qmp::pmemsave(*monitor_, 0, kLowEnd, path_));
  VMSHADOW_TRY(read_whole(path_, kLowEnd, low_));
  const std::uint64_t high_bytes = image.size() - kHighStart;
  VMSHADOW_TRY(qmp::pmemsave(*monitor_, kHighStart, high_bytes, path_));
  VMSHADOW_TRY(read_whole(path_, high_bytes, high_));
  return compare_again(image);
}

RamComparison RamOracle::compare_again(ByteSpan image) const {
  RamComparison result = compare_ram(image.first(low_.size()), low_, PageNumber{0});
  result.add(compare_ram(image.subspan(kHighStart, high_.size()), high_,
                         PageNumber{kHighStart / kPageBytes}));
  return result;
}

}  // namespace vmshadow::test
