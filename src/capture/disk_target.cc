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
  note_ends(offset, from.size());
  return {};
}

Status DiskTarget::write_zeroes(std::uint64_t offset, std::uint64_t bytes, bool) {
  const std::lock_guard lock(mutex_);
  VMSHADOW_TRY(make_sure_of_room(kEndPages));
  written_.zero(offset, bytes);
  note_ends(offset, bytes);
  return {};
}

Status DiskTarget::trim(std::uint64_t offset, std::uint64_t bytes) {
  return write_zeroes(offset, bytes, true);
}

void DiskTarget::note_ends(std::uint64_t offset, std::uint64_t bytes) {
  held_pages_ = written_.content_pages();
  const std::uint64_t end = offset + bytes;
  if (end == disk_bytes_) written_.end_at(disk_bytes_);
  const std::uint64_t first = offset / kPageBytes;
  const std::uint64_t last = (end - 1) / kPageBytes;
  // What lies between them is known as a whole now.
  std::erase_if(incomplete_, [&](std::uint64_t page) { return page > first && page < last; });
  note_incomplete(PageNumber{first});
  note_incomplete(PageNumber{last});
}

void DiskTarget::note_incomplete(PageNumber page) {
  if (!written_.is_incomplete(page)) {
    if (incomplete_.erase(page.value) == 0 || !incomplete_.empty()) return;
  } else if (incomplete_.insert(page.value).second) {
    untold_.insert(page.value);
  } else {
    return;
  }
  changed_.notify_all();
}

void DiskTarget::note_all_incomplete() {
  for (const PageNumber page : written_.incomplete()) note_incomplete(page);
}

void DiskTarget::begin_term() {
  ++term_;
  untold_.clear();
  incomplete_.clear();
  held_pages_ = written_.content_pages();
}

DiskTarget::Cut DiskTarget::cut() {
  Cut cut;
  const std::lock_guard lock(mutex_);
  cut.written = std::exchange(written_, {});
  cut.whole = !overflowed_;
  begin_term();
  return cut;
}

WrittenPages DiskTarget::take_complete() {
  const std::lock_guard lock(mutex_);
  WrittenPages taken = written_.take_complete();
  begin_term();
  note_all_incomplete();
  return taken;
}

void DiskTarget::put_back(WrittenPages&& taken) {
  const std::lock_guard lock(mutex_);
  taken.merge_newer(std::move(written_));
  written_ = std::move(taken);
  held_pages_ = written_.content_pages();
  std::erase_if(incomplete_,
                [&](std::uint64_t page) { return !written_.is_incomplete(PageNumber{page}); });
  note_all_incomplete();
}

void DiskTarget::restart() {
  WrittenPages dropped;  // freed without the lock
  const std::lock_guard lock(mutex_);
  std::swap(dropped, written_);
  begin_term();
  overflowed_ = false;
}

DiskTarget::Unknown DiskTarget::wait_for_unknown(std::size_t most) {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return woken_ || !untold_.empty(); });
    if (woken_) return {};
    Unknown unknown{term_, {}};
    while (unknown.pages.size() < most && !untold_.empty()) {
      const PageNumber page{*untold_.begin()};
      untold_.erase(untold_.begin());
      if (written_.is_incomplete(page)) unknown.pages.push_back(page);
    }
    if (!unknown.pages.empty()) return unknown;
  }
}

void DiskTarget::complete(std::uint64_t term, PageNumber page, ByteSpan content) {
  const std::lock_guard lock(mutex_);
  if (term != term_) return;
  written_.complete(page, content);
  note_incomplete(page);
}

bool DiskTarget::wait_until_known(std::chrono::milliseconds limit) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, limit, [&] { return incomplete_.empty(); });
}

void DiskTarget::wake() {
  const std::lock_guard lock(mutex_);
  woken_ = true;
  changed_.notify_all();
}

}  // namespace vmshadow::capture
