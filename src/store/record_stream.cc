#include "store/record_stream.h"

#include <algorithm>
#include <system_error>

#include "base/assert.h"

namespace vmshadow::store {

RecordStream::RecordStream(const SegmentFiles& segments, format::RecordType type,
                           const SegmentFiles::Owner& owner, std::span<const RecordPlace> places)
    : segments_(segments), type_(type), owner_(owner), places_(places) {
  std::uint64_t bytes = 0;
  for (const RecordPlace& place : places) bytes += place.record_bytes();
  if (bytes < kThreadBytesMin) return;
  try {
    thread_ = std::thread([this] { read_ahead(); });
  } catch (const std::system_error&) {
    // No thread to be had: it is only slower.
  }
}

RecordStream::~RecordStream() {
  if (!thread_.joinable()) return;
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

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

void RecordStream::fill(Buffer& buffer, std::size_t first) {
  announce();
  buffer.run = run_from(first);
  announced_bytes_ -= std::min(announced_bytes_, buffer.run.bytes);
  buffer.bytes.resize(std::max<std::size_t>(kReadBytes, buffer.run.bytes));
  const RecordPlace& begin = places_[first];
  const auto got = segments_.read_raw(
      begin.segment(), begin.offset(),
      MutableByteSpan(buffer.bytes).first(static_cast<std::size_t>(buffer.run.bytes)));
  const ByteSpan read = ByteSpan(buffer.bytes).first(got ? *got : 0);
  buffer.sound.clear();
  for (std::size_t i = first; i < buffer.run.end; ++i) {
    const auto at = static_cast<std::size_t>(places_[i].offset().value - begin.offset().value);
    std::optional<format::RecordPrefix> prefix;
    if (at + places_[i].record_bytes() <= read.size()) {
      const ByteSpan record = read.subspan(at, places_[i].record_bytes());
      if (const auto sound = SegmentFiles::check(places_[i], type_, owner_, record))
        prefix = *sound;
    }
    buffer.sound.push_back(prefix);
  }
}

void RecordStream::read_ahead() {
  for (std::size_t first = 0; first < places_.size();) {
    {
      // The caller holds one of the buffers.
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return stopping_ || filled_ - taken_ + 1 < kBuffers; });
      if (stopping_) return;
    }
    Buffer& buffer = buffers_[filled_ % kBuffers];
    fill(buffer, first);
    first = buffer.run.end;
    {
      const std::lock_guard lock(mutex_);
      ++filled_;
    }
    changed_.notify_all();
  }
}

void RecordStream::take_run() {
  current_ = &buffers_[taken_ % kBuffers];
  if (!thread_.joinable()) {
    fill(*current_, next_);
    return;
  }
  std::unique_lock lock(mutex_);
  ++taken_;
  changed_.notify_all();  // the buffer that was in our hands is free
  changed_.wait(lock, [this] { return filled_ >= taken_; });
}

Result<ByteSpan> RecordStream::next() {
  VMSHADOW_ASSERT(next_ < places_.size());
  if (current_ == nullptr || next_ == current_->run.end) take_run();
  const std::size_t i = next_++;
  const RecordPlace& place = places_[i];
  if (const auto& prefix = current_->sound[i - current_->run.first]) {
    const std::uint64_t at = place.offset().value - places_[current_->run.first].offset().value;
    const ByteSpan body = ByteSpan(current_->bytes)
                              .subspan(static_cast<std::size_t>(at), place.record_bytes())
                              .subspan(format::kRecordPrefixBytes);
    return segments_.plain_body(place, owner_, *prefix, body, opened_);
  }
  VMSHADOW_TRY(segments_.read(place, type_, owner_, alone_));
  return segments_.plain_body(place, owner_, alone_.prefix, alone_.body(), opened_);
}

}  // namespace vmshadow::store
