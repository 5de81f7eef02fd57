#include "capture/epoch_drain.h"

#include <fmt/format.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/endian.h"

namespace vmshadow::capture {
namespace {

using Event = MigrationStream::Event;
constexpr std::chrono::milliseconds kRoomPatience{20};

}  // namespace

EpochDrain::EpochDrain(UniqueFd fd, PageSink& sink)
    : fd_(std::move(fd)),
      sink_(sink),
      pool_(kChunkBytes, kChunksKept, kChunksPrepared),
      chunk_(pool_.take()) {
  static_assert(kChunkBytes >= 4 * MigrationStream::kItemBytesMax);
  pages_.reserve(kChunkBytes / kPageBytes);
}

Result<Event> EpochDrain::parse_buffered() {
  const ByteSpan bytes(chunk_.get() + parsed_, filled_ - parsed_);
  VMSHADOW_ASSIGN(const MigrationStream::Step step, stream_.parse(bytes, pages_));
  parsed_ += step.consumed;
  if (!pages_.empty()) {
    PageBatch batch;
    // A copy of just its size: the batch may wait for the encoder for long, with thousands of
    // others.
    batch.pages.assign(pages_.begin(), pages_.end());
    pages_.clear();
    batch.storage.push_back(chunk_);
    batch.memory_bytes = step.consumed;
    sink_.add(std::move(batch));
  }
  return step.event;
}

// Makes sure there is space behind filled_ for at least one item. Pages already handed on keep
// their chunk alive; the unparsed rest, less than one item, moves to a new one.
void EpochDrain::make_room() {
  if (kChunkBytes - filled_ >= MigrationStream::kItemBytesMax) return;
  auto fresh = pool_.take();
  std::memcpy(fresh.get(), chunk_.get() + parsed_, filled_ - parsed_);
  filled_ -= parsed_;
  parsed_ = 0;
  chunk_ = std::move(fresh);
}

Result<Event> EpochDrain::next(std::chrono::milliseconds stall,
                               const std::function<Result<bool>()>& guest_runs) {
  for (;;) {
    if (filled_ > parsed_) {
      VMSHADOW_ASSIGN(const Event event, parse_buffered());
      if (event != Event::need_more) return event;
    }
    if (guest_runs) {
      VMSHADOW_ASSIGN(const bool may_wait, guest_runs());
      if (may_wait) {
        VMSHADOW_ASSIGN(const bool room, sink_.wait_for_room(kRoomPatience));
        if (!room) continue;
      }
    }
    VMSHADOW_TRY(read_more(stall));
  }
}

Status EpochDrain::read_more(std::chrono::milliseconds stall) {
  make_room();
  auto got = io::read_some(fd_.get(), {chunk_.get() + filled_, kChunkBytes - filled_},
                           io::deadline_after(stall));
  if (!got && got.error().code == Errc::timed_out) {
    return fail(Errc::timed_out, fmt::format("QEMU sent nothing for {} ms at byte {} of its stream",
                                             stall.count(), bytes_read_));
  }
  if (!got) return fail(std::move(got).error().with_context("QEMU's migration stream"));
  if (*got == 0) return fail(Errc::closed, "QEMU closed its migration stream");
  filled_ += *got;
  bytes_read_ += *got;
  return {};
}

Status EpochDrain::read_tail(std::chrono::milliseconds stall) {
  for (;;) {
    if (filled_ > parsed_) {
      VMSHADOW_ASSIGN(const Event event, parse_buffered());
      if (event != Event::need_more) {
        return fail(Errc::protocol, "QEMU's device tail holds something else");
      }
    }
    VMSHADOW_ASSIGN(const bool whole, stream_.end_with_description());
    if (whole) return {};
    VMSHADOW_TRY(read_more(stall));
  }
}

bool EpochDrain::wait_for_close(std::chrono::milliseconds patience) {
  std::byte ignored{};
  const auto got = io::read_some(fd_.get(), {&ignored, 1}, io::deadline_after(patience));
  return got ? *got == 0 : got.error().code != Errc::timed_out;
}

Status EpochDrain::take_arrived() {
  for (;;) {
    if (filled_ > parsed_) {
      VMSHADOW_ASSIGN(const Event event, parse_buffered());
      if (event != Event::need_more) {
        return fail(Errc::protocol, "QEMU's device tail holds something else");
      }
    }
    make_room();
    const ssize_t got = ::recv(fd_.get(), chunk_.get() + filled_, kChunkBytes - filled_, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno == EAGAIN) return {};
    if (got < 0) return fail_errno(errno, "QEMU's migration stream");
    if (got == 0) return fail(Errc::closed, "QEMU closed its migration stream");
    filled_ += static_cast<std::size_t>(got);
    bytes_read_ += static_cast<std::uint64_t>(got);
  }
}

Status EpochDrain::send(std::initializer_list<ColoMessage> messages) {
  std::vector<std::byte> bytes(messages.size() * sizeof(be32));
  std::size_t at = 0;
  for (const ColoMessage message : messages) {
    const be32 word(static_cast<std::uint32_t>(message));
    std::memcpy(bytes.data() + at, &word, sizeof word);
    at += sizeof word;
  }
  // A few bytes into a socket whose reader is waiting for them: they fit, or the peer is gone.
  auto sent = io::write_all(fd_.get(), bytes, io::deadline_after(std::chrono::seconds(1)));
  if (!sent) return fail(std::move(sent).error().with_context("answering QEMU's checkpoint"));
  return {};
}

}  // namespace vmshadow::capture
