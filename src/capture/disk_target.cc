#include "capture/disk_target.h"

#include <utility>

#include "base/assert.h"

namespace vmshadow::capture {
namespace {

/// What a run of zeroes costs: a node of a map.
constexpr std::size_t kRunBytes = 64;

}  // namespace

DiskTarget::DiskTarget(std::uint64_t disk_bytes, std::size_t held_pages_max)
    : disk_bytes_(disk_bytes), held_pages_max_(held_pages_max) {
  VMSHADOW_ASSERT(disk_bytes % kDiskSectorBytes == 0);
}

Status DiskTarget::read(std::uint64_t, MutableByteSpan) {
  return fail(Errc::unsupported, "a mirror's target keeps only what was copied since the last cut");
}

template <class Change>
void DiskTarget::change(std::uint64_t offset, std::uint64_t bytes, std::size_t held_more,
                        const Change& how) {
  const std::lock_guard lock(mutex_);
  if (failure_ != Failure::none) return;
  const bool whole_end = (offset + bytes) % kPageBytes == 0 || offset + bytes == disk_bytes_;
  if (offset % kPageBytes != 0 || !whole_end) return fail_for_good(Failure::part_page);
  // Some of its pages may be here already; the bound need not be that exact.
  const std::size_t held =
      written_.content_pages() + written_.zeroes().runs() * kRunBytes / kPageBytes;
  if (held + held_more > held_pages_max_) return fail_for_good(Failure::overflow);
  how();
  held_pages_ = written_.content_pages();
}

void DiskTarget::fail_for_good(Failure why) {
  failure_ = why;
  written_ = {};
  held_pages_ = 0;
}

Status DiskTarget::write(std::uint64_t offset, ByteSpan from) {
  change(offset, from.size(), from.size() / kPageBytes + 1,
         [&] { written_.write(PageNumber{offset / kPageBytes}, from); });
  return {};
}

Status DiskTarget::write_zeroes(std::uint64_t offset, std::uint64_t bytes, bool) {
  change(offset, bytes, 0, [&] {
    written_.zero({offset / kPageBytes, (offset + bytes + kPageBytes - 1) / kPageBytes});
  });
  return {};
}

Status DiskTarget::trim(std::uint64_t offset, std::uint64_t bytes) {
  return write_zeroes(offset, bytes, true);
}

WrittenPages DiskTarget::cut() {
  const std::lock_guard lock(mutex_);
  held_pages_ = 0;
  return std::exchange(written_, {});
}

}  // namespace vmshadow::capture
