#include "nbd/transmission.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/assert.h"
#include "nbd/protocol.h"

namespace vmshadow::nbd {
namespace {

/// Descriptors in one answer about block status: the client asks again for the rest.
constexpr std::size_t kDescriptorsMax = 4096;
/// Of an error's text. QEMU 7.2 hangs up on an error chunk of more than 1000 bytes.
constexpr std::size_t kErrorTextBytesMax = 256;
/// What a connection keeps of its buffer when it has served a longer request.
constexpr std::size_t kKeptBytes = std::size_t{1} << 20;

WireError wire_error(Errc code) {
  switch (code) {
    case Errc::no_space:
      return WireError::no_space;
    case Errc::permission:
      return WireError::permission;
    case Errc::invalid_argument:
      return WireError::invalid;
    case Errc::unsupported:
      return WireError::unsupported;
    default:
      return WireError::io;
  }
}

std::uint32_t state_flags(const BlockExtent& extent) {
  return (extent.hole ? kStateHole : 0) | (extent.zeroes ? kStateZero : 0);
}

class Transmission {
 public:
  Transmission(ByteStream& stream, const Agreement& agreement)
      : stream_(stream), device_(*agreement.device), agreement_(agreement) {}
  [[nodiscard]] Status run();

 private:
  [[nodiscard]] Status serve(const Request& request);
  [[nodiscard]] Status serve_read(const Request& request);
  [[nodiscard]] Status serve_block_status(const Request& request);
  [[nodiscard]] Status change(const Request& request);
  /// What is wrong with a request before the device is asked, if anything.
  [[nodiscard]] WireError objection(const Request& request) const;
  [[nodiscard]] Status take_payload(const Request& request);
  [[nodiscard]] Status reply_done(const Request& request);
  [[nodiscard]] Status reply_error(const Request& request, WireError error, std::string_view text);
  [[nodiscard]] Status reply_error(const Request& request, const Error& error);
  [[nodiscard]] StructuredReply chunk(const Request& request, Chunk type, std::size_t bytes) const;

  ByteStream& stream_;
  BlockDevice& device_;
  const Agreement& agreement_;
  std::vector<std::byte> buffer_;  // of a write, its payload; of a read, head and data
};

Status Transmission::run() {
  for (;;) {
    VMSHADOW_ASSIGN(const Request request, read_struct<Request>(stream_));
    if (request.magic.get() != kRequestMagic) {
      return fail(Errc::protocol, "a request does not begin with its magic number");
    }
    if (request.command.get() == static_cast<std::uint16_t>(Command::disconnect)) return {};
    VMSHADOW_TRY(serve(request));
    if (buffer_.size() > kKeptBytes) buffer_ = {};
  }
}

Status Transmission::serve(const Request& request) {
  const auto command = static_cast<Command>(request.command.get());
  // What follows a write must be taken, whatever becomes of the write.
  if (command == Command::write) VMSHADOW_TRY(take_payload(request));
  if (const WireError error = objection(request); error != WireError::none) {
    return reply_error(request, error, "the request is not possible here");
  }
  if (command == Command::read) return serve_read(request);
  if (command == Command::block_status) return serve_block_status(request);
  auto done = change(request);
  // As durable as a flush makes it.
  if (done && command != Command::flush && (request.flags.get() & kCommandFua) != 0) {
    done = device_.flush();
  }
  return done ? reply_done(request) : reply_error(request, done.error());
}

WireError Transmission::objection(const Request& request) const {
  const std::uint16_t flags = request.flags.get();
  const std::uint64_t size = device_.bytes();
  const std::uint64_t offset = request.offset.get();
  const std::uint32_t bytes = request.bytes.get();
  std::uint16_t known = 0;
  bool changes = false;
  switch (static_cast<Command>(request.command.get())) {
    case Command::read:
      known = kCommandFua;
      if (agreement_.structured) known |= kCommandDf;
      if (bytes > kPayloadBytesMax) {
        return agreement_.structured ? WireError::overflow : WireError::invalid;
      }
      break;
    case Command::block_status:
      known = kCommandFua | kCommandReqOne;
      if (!agreement_.allocation) return WireError::invalid;
      break;
    case Command::flush:
      return (flags & ~kCommandFua) == 0 ? WireError::none : WireError::invalid;
    case Command::write:
    case Command::trim:
      known = kCommandFua;
      changes = true;
      break;
    case Command::write_zeroes:
      known = kCommandFua | kCommandNoHole;
      changes = true;
      break;
    default:
      return WireError::invalid;
  }
  if ((flags & ~known) != 0) return WireError::invalid;
  if (changes && device_.read_only()) return WireError::permission;
  if (bytes == 0) return WireError::invalid;
  if (const std::uint32_t block = device_.block_bytes();
      offset % block != 0 || bytes % block != 0) {
    return WireError::invalid;
  }
  if (offset > size || bytes > size - offset) {
    return changes ? WireError::no_space : WireError::invalid;
  }
  return WireError::none;
}

Status Transmission::take_payload(const Request& request) {
  if (request.bytes.get() > kPayloadBytesMax) {
    return fail(Errc::protocol,
                fmt::format("a write of {} bytes, over {}", request.bytes.get(), kPayloadBytesMax));
  }
  if (buffer_.size() < request.bytes.get()) buffer_.resize(request.bytes.get());
  return stream_.read(std::span(buffer_).first(request.bytes.get()));
}

Status Transmission::change(const Request& request) {
  const std::uint64_t offset = request.offset.get();
  const std::uint32_t bytes = request.bytes.get();
  switch (static_cast<Command>(request.command.get())) {
    case Command::write:
      return device_.write(offset, std::span(buffer_).first(bytes));
    case Command::write_zeroes:
      return device_.write_zeroes(offset, bytes, (request.flags.get() & kCommandNoHole) == 0);
    case Command::trim:
      return device_.trim(offset, bytes);
    case Command::flush:
      // Also of what cannot be written: clients ask without looking.
      return device_.read_only() ? Status{} : device_.flush();
    default:
      VMSHADOW_ASSERT(!"objection() lets nothing else pass");
      return {};
  }
}

Status Transmission::serve_read(const Request& request) {
  // Head and data in one buffer: one write for both.
  const std::uint32_t bytes = request.bytes.get();
  const std::size_t head_bytes =
      agreement_.structured ? sizeof(StructuredReply) + sizeof(be64) : sizeof(SimpleReply);
  if (buffer_.size() < head_bytes + bytes) buffer_.resize(head_bytes + bytes);
  const MutableByteSpan message = std::span(buffer_).first(head_bytes + bytes);
  if (auto read = device_.read(request.offset.get(), message.subspan(head_bytes)); !read) {
    return reply_error(request, read.error());
  }
  if (agreement_.structured) {
    const StructuredReply head = chunk(request, Chunk::offset_data, sizeof(be64) + bytes);
    std::memcpy(message.data(), &head, sizeof head);
    std::memcpy(message.data() + sizeof head, &request.offset, sizeof request.offset);
  } else {
    SimpleReply head;
    head.cookie = request.cookie;
    std::memcpy(message.data(), &head, sizeof head);
  }
  return stream_.write(message);
}

Status Transmission::serve_block_status(const Request& request) {
  const auto extents = device_.extents(request.offset.get(), request.bytes.get());
  if (!extents) return reply_error(request, extents.error());
  std::vector<StatusDescriptor> descriptors;
  const bool one = (request.flags.get() & kCommandReqOne) != 0;
  std::uint64_t left = request.bytes.get();
  for (const BlockExtent& extent : *extents) {
    const auto bytes = static_cast<std::uint32_t>(std::min(extent.bytes, left));
    if (bytes == 0) continue;
    left -= bytes;
    const std::uint32_t flags = state_flags(extent);
    if (!descriptors.empty() && descriptors.back().flags.get() == flags) {
      descriptors.back().bytes = descriptors.back().bytes.get() + bytes;
      continue;
    }
    if (descriptors.size() == (one ? 1 : kDescriptorsMax)) break;
    StatusDescriptor descriptor;
    descriptor.bytes = bytes;
    descriptor.flags = flags;
    descriptors.push_back(descriptor);
  }
  if (descriptors.empty()) {
    return reply_error(request, WireError::io, "the device does not say what the range is");
  }
  const be32 context(kAllocationContextId);
  const ByteSpan list = std::as_bytes(std::span(descriptors));
  const StructuredReply head = chunk(request, Chunk::block_status, sizeof context + list.size());
  std::vector<std::byte> message(sizeof head + sizeof context + list.size());
  std::memcpy(message.data(), &head, sizeof head);
  std::memcpy(message.data() + sizeof head, &context, sizeof context);
  std::memcpy(message.data() + sizeof head + sizeof context, list.data(), list.size());
  return stream_.write(message);
}

Status Transmission::reply_done(const Request& request) {
  SimpleReply reply;  // allowed for all but reads, whatever was agreed on
  reply.cookie = request.cookie;
  return stream_.write(bytes_of(reply));
}

Status Transmission::reply_error(const Request& request, const Error& error) {
  spdlog::debug("NBD request at {}: {}", request.offset.get(), error.message);
  return reply_error(request, wire_error(error.code), error.message);
}

Status Transmission::reply_error(const Request& request, WireError error, std::string_view text) {
  if (!agreement_.structured) {
    SimpleReply reply;
    reply.error = static_cast<std::uint32_t>(error);
    reply.cookie = request.cookie;
    return stream_.write(bytes_of(reply));
  }
  text = text.substr(0, kErrorTextBytesMax);
  const be32 code(static_cast<std::uint32_t>(error));
  const be16 length(static_cast<std::uint16_t>(text.size()));
  const StructuredReply head =
      chunk(request, Chunk::error, sizeof code + sizeof length + text.size());
  std::vector<std::byte> message;
  for (const ByteSpan part :
       {bytes_of(head), bytes_of(code), bytes_of(length), std::as_bytes(std::span(text))}) {
    message.insert(message.end(), part.begin(), part.end());
  }
  return stream_.write(message);
}

StructuredReply Transmission::chunk(const Request& request, Chunk type, std::size_t bytes) const {
  StructuredReply head;
  head.flags = kChunkDone;
  head.type = static_cast<std::uint16_t>(type);
  head.cookie = request.cookie;
  head.bytes = static_cast<std::uint32_t>(bytes);
  return head;
}

}  // namespace

Status transmit(ByteStream& stream, const Agreement& agreement) {
  stream.may_be_idle();
  return Transmission(stream, agreement).run();
}

}  // namespace vmshadow::nbd
