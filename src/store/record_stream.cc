#include "store/record_stream.h"

#include <algorithm>
#include <system_error>
#include <utility>

#include "base/assert.h"

namespace vmshadow::store {

RecordStream::RecordStream(const SegmentFiles& segments, const SegmentFiles::Owner& owner,
                           Wanted wanted)
    : segments_(segments), owner_(owner), wanted_(std::move(wanted)) {
  std::uint64_t bytes = 0;
  for (const RecordPlace& place : wanted_.places) bytes += place.record_bytes();
  if (bytes < kThreadBytesMin) return;
  try {
    for (unsigned i = 0; i < kThreads; ++i) threads_.emplace_back([this] { work_ahead(); });
  } catch (const std::system_error&) {
    // With fewer threads, or none, it is only slower.
  }
}

RecordStream::~RecordStream() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

RecordStream::Run RecordStream::run_from(std::size_t first) const {
  const std::span<const RecordPlace> places = wanted_.places;
  const std::uint64_t begin = places[first].offset().value;
  Run run{first, first + 1, places[first].record_bytes()};
  for (; run.end < places.size() && run.end - first < kRunRecordsMax; ++run.end) {
    const RecordPlace& place = places[run.end];
    const std::uint64_t offset = place.offset().value;
    if (place.segment() != places[first].segment() || offset < begin + run.bytes ||
        offset - begin - run.bytes > kGapBytesMax ||
        offset + place.record_bytes() - begin > kReadBytes) {
      break;
    }
    run.bytes = offset + place.record_bytes() - begin;
  }
  return run;
}

bool RecordStream::decode(std::size_t place, ByteSpan record, Buffer& buffer,
                          MutableByteSpan out) const {
  const RecordPlace& at = wanted_.places[place];
  const auto prefix = SegmentFiles::check(at, wanted_.type, owner_, record);
  if (!prefix) return false;
  const auto body = segments_.plain_body(at, owner_, *prefix,
                                         record.subspan(format::kRecordPrefixBytes), buffer.opened);
  return body && wanted_.decode(place, *body, out);
}

void RecordStream::fill(Buffer& buffer) const {
  const Run& run = buffer.run;
  const RecordPlace& begin = wanted_.places[run.first];
  const std::size_t count = run.end - run.first;
  buffer.decoded.resize(std::max(buffer.decoded.size(), count * wanted_.decoded_bytes));
  buffer.sound.assign(count, 0);
  const auto got = segments_.read_past_cache(begin.segment(), begin.offset(),
                                             static_cast<std::size_t>(run.bytes), buffer.bytes);
  const ByteSpan read = got ? *got : ByteSpan();
  for (std::size_t i = 0; i < count; ++i) {
    const RecordPlace& place = wanted_.places[run.first + i];
    const auto at = static_cast<std::size_t>(place.offset().value - begin.offset().value);
    if (at + place.record_bytes() > read.size()) continue;
    const auto out =
        MutableByteSpan(buffer.decoded).subspan(i * wanted_.decoded_bytes, wanted_.decoded_bytes);
    buffer.sound[i] =
        decode(run.first + i, read.subspan(at, place.record_bytes()), buffer, out) ? 1 : 0;
  }
}

void RecordStream::work_ahead() {
  while (true) {
    Buffer* buffer = nullptr;
    {
      std::unique_lock lock(mutex_);
      // The run before taken_ is in the caller's hands.
      changed_.wait(lock, [this] { return stopping_ || claimed_ + 1 < taken_ + kBuffers; });
      if (stopping_ || claimed_end_ == wanted_.places.size()) return;
      buffer = &buffers_[claimed_++ % kBuffers];
      buffer->run = run_from(claimed_end_);
      buffer->ready = false;
      claimed_end_ = buffer->run.end;
    }
    fill(*buffer);
    {
      const std::lock_guard lock(mutex_);
      buffer->ready = true;
    }
    changed_.notify_all();
  }
}

void RecordStream::take_run() {
  current_ = &buffers_[taken_ % kBuffers];
  if (threads_.empty()) {
    current_->run = run_from(next_);
    fill(*current_);
    return;
  }
  std::unique_lock lock(mutex_);
  ++taken_;
  changed_.notify_all();  // the buffer that was in our hands is free
  changed_.wait(lock, [this] { return claimed_ >= taken_ && current_->ready; });
}

Result<ByteSpan> RecordStream::next() {
  VMSHADOW_ASSERT(next_ < wanted_.places.size());
  if (current_ == nullptr || next_ == current_->run.end) take_run();
  const std::size_t i = next_++;
  if (const std::size_t at = i - current_->run.first; current_->sound[at] != 0) {
    return ByteSpan(current_->decoded).subspan(at * wanted_.decoded_bytes, wanted_.decoded_bytes);
  }
  SegmentFiles::Record record;
  VMSHADOW_TRY(segments_.read(wanted_.places[i], wanted_.type, owner_, record));
  VMSHADOW_ASSIGN(
      const ByteSpan body,
      segments_.plain_body(wanted_.places[i], owner_, record.prefix, record.body(), alone_opened_));
  alone_decoded_.resize(wanted_.decoded_bytes);
  VMSHADOW_TRY(wanted_.decode(i, body, alone_decoded_));
  return ByteSpan(alone_decoded_);
}

}  // namespace vmshadow::store
