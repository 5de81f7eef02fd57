#include "ship/sender.h"

#include <fmt/format.h>
#include <poll.h>

#include <algorithm>
#include <utility>

#include "base/assert.h"

namespace vmshadow::ship {
namespace {

// Written at a time, so that a slow link shows its progress.
constexpr std::size_t kPieceBytes = std::size_t{64} << 10;

}  // namespace

Result<std::unique_ptr<Sender>> Sender::connect(const io::TcpAddress& store,
                                                const std::string& vm_name, SenderOptions options) {
  if (!is_valid_vm_name(vm_name)) {
    return fail(Errc::invalid_argument,
                fmt::format("'{}' is not a VM name: use 1 to {} of letters, digits, '.', '_', '-'",
                            vm_name, kVmNameBytesMax));
  }
  const auto deadline = io::deadline_after(options.connect);
  auto fd = io::connect_tcp(store, deadline);
  if (!fd) {
    Error error = std::move(fd).error().with_context("no store answers");
    error.message += ": start vmshadow-store there, or give its address";
    return fail(std::move(error));
  }
  RecordChannel channel(*std::move(fd));

  const VmId vm = vm_id(vm_name);
  format::Hello hello;
  hello.vm_name = vm_name;
  std::vector<std::byte> out;
  const std::size_t start = format::begin_record(out);
  format::append_body(out, hello);
  format::finish_record(out, start, {format::RecordType::hello, 0, vm, {}, {}});
  const std::string what = fmt::format("greeting the store at {}", store.text());
  if (auto sent = channel.write(out, deadline); !sent) {
    return fail(std::move(sent).error().with_context(what));
  }
  auto reply = channel.read(deadline, format::kWireBodyBytesMax);
  if (!reply) return fail(std::move(reply).error().with_context(what));
  if (reply->prefix.head.type != format::RecordType::welcome) {
    return fail(refusal_or_unexpected(*reply).with_context(
        fmt::format("the store at {} refuses", store.text())));
  }
  VMSHADOW_ASSIGN(format::Welcome welcome, format::decode_welcome(reply->body()));
  return std::unique_ptr<Sender>(
      new Sender(std::move(channel), welcome, vm, store.text(), options));
}

Sender::Sender(RecordChannel channel, format::Welcome welcome, VmId vm, std::string store_text,
               SenderOptions options)
    : channel_(std::move(channel)),
      welcome_(welcome),
      vm_(vm),
      store_text_(std::move(store_text)),
      options_(options),
      progress_(io::Deadline::clock::now()) {}

Sender::~Sender() { close(); }

Result<BaseAnswer> Sender::fetch_base(const PageHasher& hasher, BaseRequest request) {
  VMSHADOW_ASSERT(!listener_.joinable());
  if (welcome_.version < format::kWireVersionWithBase) {
    return BaseAnswer{std::nullopt, fmt::format("the store speaks protocol version {}, which "
                                                "cannot tell what it has",
                                                welcome_.version)};
  }
  request.vm = vm_;
  request.granted = welcome_.generation;
  request.silence = options_.silence;
  auto answer = ship::fetch_base(channel_, request, hasher);
  if (!answer) {
    return fail(std::move(answer).error().with_context(
        fmt::format("asking the store at {} what it has", store_text_)));
  }
  return answer;
}

void Sender::start(AckHandler on_ack, FailureHandler on_failure) {
  VMSHADOW_ASSERT(!listener_.joinable());
  on_ack_ = std::move(on_ack);
  on_failure_ = std::move(on_failure);
  listener_ = std::thread([this] { listen(); });
}

void Sender::close() {
  closing_ = true;
  channel_.shut_down();
  if (listener_.joinable()) listener_.join();
}

Status Sender::send(ByteSpan records) {
  const std::lock_guard lock(write_mutex_);
  while (!records.empty()) {
    const ByteSpan piece = records.first(std::min(records.size(), kPieceBytes));
    if (auto sent = channel_.write(piece, io::deadline_after(options_.silence)); !sent) {
      return fail(std::move(sent).error().with_context(
          fmt::format("shipping to the store at {}", store_text_)));
    }
    progress_ = io::Deadline::clock::now();
    records = records.subspan(piece.size());
  }
  return {};
}

Status Sender::ping() {
  // A sender in the middle of a write proves by itself whether the link lives.
  const std::unique_lock lock(write_mutex_, std::try_to_lock);
  if (!lock.owns_lock()) return {};
  std::vector<std::byte> out;
  format::append_record(out, {format::RecordType::ping, 0, vm_, welcome_.generation, {}}, {});
  return channel_.write(out, io::deadline_after(options_.silence));
}

void Sender::listen() {
  Status status = listen_until_failure();
  if (closing_) return;
  on_failure_(std::move(status).error().with_context(
      fmt::format("the link to the store at {}", store_text_)));
}

Status Sender::listen_until_failure() {
  auto heard = io::Deadline::clock::now();
  for (;;) {
    // Wait in steps of a ping; a record, once begun, must be whole within the silence limit.
    if (!channel_.in_record()) {
      auto ready = io::wait_for(channel_.fd(), POLLIN, io::deadline_after(options_.ping_every));
      if (!ready && ready.error().code != Errc::timed_out) return ready;
      if (!ready) {
        const auto alive = std::max(heard, progress_.load());
        if (io::Deadline::clock::now() - alive > options_.silence) {
          return fail(Errc::timed_out, fmt::format("the store has not answered for {} s",
                                                   options_.silence.count() / 1000));
        }
        VMSHADOW_TRY(ping());
        continue;
      }
    }
    VMSHADOW_ASSIGN(const RecordChannel::Record record,
                    channel_.read(io::deadline_after(options_.silence), format::kWireBodyBytesMax));
    heard = io::Deadline::clock::now();
    switch (record.prefix.head.type) {
      case format::RecordType::ack: {
        VMSHADOW_ASSIGN(const format::Ack ack, format::decode_ack(record.body()));
        on_ack_(record.prefix.head.epoch, ack);
        break;
      }
      case format::RecordType::pong:
        break;
      default:
        return fail(refusal_or_unexpected(record));
    }
  }
}

}  // namespace vmshadow::ship
