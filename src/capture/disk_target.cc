#include "capture/disk_target.h"

#include <fmt/format.h>

#include <utility>

#include "base/assert.h"

namespace vmshadow::capture {

DiskTarget::DiskTarget(std::uint64_t disk_bytes, std::size_t held_pages_max)
    : disk_bytes_(disk_bytes), held_pages_max_(held_pages_max) {
  VMSHADOW_ASSERT(disk_bytes % WrittenPages::kSectorBytes == 0);
}

Status DiskTarget::read(std::uint64_t, MutableByteSpan) {
  return fail(Errc::unsupported,
              "a mirror's target keeps only what was written since the last cut");
}

Status DiskTarget::write(std::uint64_t offset, ByteSpan from) {
  const std::lock_guard lock(mutex_);
  // Some of its pages may be here already; the bound need not be that exact.
  const std::size_t more = from.size() / kPageBytes + 2;
  if (overflowed_ || written_.content_pages() + more > held_pages_max_) {
    overflowed_ = true;
    return fail(Errc::no_space,
                fmt::format("more than {} MiB of the disk were written since the last epoch",
                            held_pages_max_ * kPageBytes >> 20));
  }
  written_.write(offset, from);
  return {};
}

Status DiskTarget::write_zeroes(std::uint64_t offset, std::uint64_t bytes, bool) {
  const std::lock_guard lock(mutex_);
  if (overflowed_) return fail(Errc::no_space, "an earlier write was refused already");
  written_.zero(offset, bytes);
  return {};
}

Status DiskTarget::trim(std::uint64_t offset, std::uint64_t bytes) {
  return write_zeroes(offset, bytes, true);
}

WrittenPages DiskTarget::cut() {
  const std::lock_guard lock(mutex_);
  overflowed_ = false;
  return std::exchange(written_, {});
}

void DiskTarget::put_back(WrittenPages&& taken) {
  const std::lock_guard lock(mutex_);
  written_.merge_older(std::move(taken));
}

}  // namespace vmshadow::capture
