#include "ship/record_channel.h"

#include <fmt/format.h>
#include <sys/socket.h>

#include <cstring>
#include <utility>

#include "format/wire.h"

namespace vmshadow::ship {
namespace {

constexpr std::size_t kFirstBufferBytes = std::size_t{8} << 10;
constexpr std::size_t kReadAheadBytes = std::size_t{1} << 20;
constexpr std::size_t kBufferBytes =
    format::kRecordPrefixBytes + format::kRecordBodyBytesMax + kReadAheadBytes;

}  // namespace

RecordChannel::RecordChannel(UniqueFd fd) : fd_(std::move(fd)) {}

// Makes at least `bytes` available behind taken_.
Status RecordChannel::fill(std::size_t bytes, io::Deadline deadline) {
  // Small until a peer has shown that it sends large records.
  if (buffer_.size() < bytes)
    buffer_.resize(bytes <= kFirstBufferBytes ? kFirstBufferBytes : kBufferBytes);
  if (taken_ == filled_) taken_ = filled_ = 0;
  if (buffer_.size() - taken_ < bytes) {
    std::memmove(buffer_.data(), buffer_.data() + taken_, filled_ - taken_);
    filled_ -= taken_;
    taken_ = 0;
  }
  while (filled_ - taken_ < bytes) {
    VMSHADOW_ASSIGN(const std::size_t got,
                    io::read_some(fd_.get(), MutableByteSpan(buffer_).subspan(filled_), deadline));
    if (got == 0) {
      return fail(Errc::closed, in_record() ? "the peer closed the connection inside a record"
                                            : "the peer closed the connection");
    }
    filled_ += got;
  }
  return {};
}

Result<RecordChannel::Record> RecordChannel::read(io::Deadline deadline,
                                                  std::size_t body_bytes_max) {
  VMSHADOW_TRY(fill(format::kRecordPrefixBytes, deadline));
  VMSHADOW_ASSIGN(const format::RecordPrefix prefix,
                  format::decode_prefix(ByteSpan(buffer_).subspan(taken_)));
  if (prefix.body_bytes > body_bytes_max) {
    return fail(Errc::protocol, fmt::format("a record of {} bytes where at most {} are allowed",
                                            prefix.body_bytes, body_bytes_max));
  }
  const std::size_t total = format::kRecordPrefixBytes + prefix.body_bytes;
  VMSHADOW_TRY(fill(total, deadline));
  Record record{prefix, ByteSpan(buffer_).subspan(taken_, total)};
  VMSHADOW_TRY(format::check_body(prefix, record.body()));
  taken_ += total;
  return record;
}

Status RecordChannel::write(ByteSpan records, io::Deadline deadline) {
  return io::write_all(fd_.get(), records, deadline);
}

void RecordChannel::linger(io::Deadline deadline) {
  ::shutdown(fd_.get(), SHUT_WR);
  std::byte discarded[16384];
  while (io::Deadline::clock::now() < deadline) {
    const auto got = io::read_some(fd_.get(), discarded, deadline);
    if (!got || *got == 0) return;
  }
}

void RecordChannel::shut_down() { ::shutdown(fd_.get(), SHUT_RDWR); }

Error refusal_or_unexpected(const RecordChannel::Record& record) {
  if (record.prefix.head.type == format::RecordType::refusal) {
    auto refusal = format::decode_refusal(record.body());
    if (!refusal) return std::move(refusal).error();
    return Error{refusal->code, std::move(refusal->text)};
  }
  return Error{Errc::protocol, fmt::format("the store sent an unexpected record of type {:#05x}",
                                           static_cast<unsigned>(record.prefix.head.type))};
}

}  // namespace vmshadow::ship
