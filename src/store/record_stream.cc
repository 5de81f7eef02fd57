#include "store/record_stream.h"

#include "base/assert.h"

namespace vmshadow::store {

void RecordStream::read_ahead() {
  const RecordPlace& first = places_[next_];
  ahead_offset_ = first.offset().value;
  std::uint64_t end = ahead_offset_ + first.record_bytes();
  for (ahead_end_ = next_ + 1; ahead_end_ < places_.size(); ++ahead_end_) {
    const RecordPlace& place = places_[ahead_end_];
    const std::uint64_t offset = place.offset().value;
    if (place.segment() != first.segment() || offset < end || offset - end > kGapBytesMax ||
        offset + place.record_bytes() - ahead_offset_ > kReadBytes) {
      break;
    }
    end = offset + place.record_bytes();
  }
  ahead_bytes_ = 0;
  if (ahead_end_ == next_ + 1) return;
  ahead_.resize(kReadBytes);
  const auto got = segments_.read_raw(
      first.segment(), first.offset(),
      MutableByteSpan(ahead_).first(static_cast<std::size_t>(end - ahead_offset_)));
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
    VMSHADOW_TRY(SegmentFiles::check(place, type_, owner_, bytes));
    return bytes.subspan(format::kRecordPrefixBytes);
  }
  VMSHADOW_TRY(segments_.read(place, type_, owner_, alone_));
  return alone_.body();
}

}  // namespace vmshadow::store
