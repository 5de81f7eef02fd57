#include "store/record_stream.h"

#include <algorithm>

#include "base/assert.h"

namespace vmshadow::store {

RecordStream::Run RecordStream::run_from(std::size_t first) const {
  const std::uint64_t begin = places_[first].offset().value;
  Run run{first, first + 1, places_[first].record_bytes()};
  for (; run.end < places_.size(); ++run.end) {
    const RecordPlace& place = places_[run.end];
    const std::uint64_t offset = place.offset().value;
    if (place.segment() != places_[first].segment() || offset < begin + run.bytes ||
        offset - begin - run.bytes > kGapBytesMax ||
        offset + place.record_bytes() - begin > kReadBytes) {
      break;
    }
    run.bytes = offset + place.record_bytes() - begin;
  }
  return run;
}

void RecordStream::announce() {
  while (announced_end_ < places_.size() && announced_bytes_ < kAnnouncedBytes) {
    const Run run = run_from(announced_end_);
    const RecordPlace& first = places_[run.first];
    segments_.will_read(first.segment(), first.offset(), run.bytes);
    announced_end_ = run.end;
    announced_bytes_ += run.bytes;
  }
}

void RecordStream::read_ahead() {
  announce();
  const Run run = run_from(next_);
  announced_bytes_ -= std::min(announced_bytes_, run.bytes);
  ahead_end_ = run.end;
  ahead_offset_ = places_[next_].offset().value;
  ahead_bytes_ = 0;
  if (run.end == run.first + 1) return;
  ahead_.resize(kReadBytes);
  const auto got =
      segments_.read_raw(places_[next_].segment(), places_[next_].offset(),
                         MutableByteSpan(ahead_).first(static_cast<std::size_t>(run.bytes)));
  if (got) ahead_bytes_ = *got;
}

Result<ByteSpan> RecordStream::next() {
  VMSHADOW_ASSERT(next_ < places_.size());
  if (next_ == ahead_end_) read_ahead();
  const RecordPlace& place = places_[next_++];
  const std::uint64_t skip = place.offset().value - ahead_offset_;
  if (skip + place.record_bytes() <= ahead_bytes_) {
    const ByteSpan bytes =
        ByteSpan(ahead_).subspan(static_cast<std::size_t>(skip), place.record_bytes());
    VMSHADOW_ASSIGN(const auto prefix, SegmentFiles::check(place, type_, owner_, bytes));
    return segments_.plain_body(place, owner_, prefix, bytes.subspan(format::kRecordPrefixBytes),
                                opened_);
  }
  VMSHADOW_TRY(segments_.read(place, type_, owner_, alone_));
  return segments_.plain_body(place, owner_, alone_.prefix, alone_.body(), opened_);
}

}  // namespace vmshadow::store
