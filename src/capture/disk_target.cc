#include "capture/disk_target.h"

#include <fmt/format.h>

#include <utility>

#include "base/assert.h"

namespace vmshadow::capture {
namespace {

/// What a run of zeroes costs: a node of a map.
constexpr std::size_t kRunBytes = 64;
/// A range's first and last page may be touched in part.
constexpr std::size_t kEndPages = 2;

}  // namespace

DiskTarget::DiskTarget(std::uint64_t disk_bytes, std::size_t held_pages_max)
    : disk_bytes_(disk_bytes), held_pages_max_(held_pages_max) {
  VMSHADOW_ASSERT(disk_bytes % WrittenPages::kSectorBytes == 0);
}

Status DiskTarget::read(std::uint64_t, MutableByteSpan) {
  return fail(Errc::unsupported,
              "a mirror's target keeps only what was written since the last cut");
}

Status DiskTarget::make_sure_of_room(std::size_t pages) {
  const std::size_t held =
      written_.content_pages() + written_.zeroes().runs() * kRunBytes / kPageBytes;
  if (held + pages > held_pages_max_) overflowed_ = true;
  if (!overflowed_) return {};
  return fail(Errc::no_space,
              fmt::format("more than {} MiB of the disk were written since the last epoch",
                          held_pages_max_ * kPageBytes >> 20));
}

Status DiskTarget::write(std::uint64_t offset, ByteSpan from) {
  const std::lock_guard lock(mutex_);
  // Some of its pages may be here already; the bound need not be that exact.
  VMSHADOW_TRY(make_sure_of_room(from.size() / kPageBytes + kEndPages));
  written_.write(offset, from);
  return {};
}

Status DiskTarget::write_zeroes(std::uint64_t offset, std::uint64_t bytes, bool) {
  const std::lock_guard lock(mutex_);
  VMSHADOW_TRY(make_sure_of_room(kEndPages));
  written_.zero(offset, bytes);
  return {};
}

Status DiskTarget::trim(std::uint64_t offset, std::uint64_t bytes) {
  return write_zeroes(offset, bytes, true);
}

DiskTarget::Cut DiskTarget::cut() {
  Cut cut;
  const std::lock_guard lock(mutex_);
  cut.written = std::exchange(written_, {});
  cut.written.end_at(disk_bytes_);
  cut.whole = !overflowed_;
  return cut;
}

void DiskTarget::put_back(WrittenPages&& taken) {
  const std::lock_guard lock(mutex_);
  taken.merge_newer(std::move(written_));
  written_ = std::move(taken);
}

void DiskTarget::restart() {
  WrittenPages dropped;  // freed without the lock
  const std::lock_guard lock(mutex_);
  std::swap(dropped, written_);
  overflowed_ = false;
}

}  // namespace vmshadow::capture
