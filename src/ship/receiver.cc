#include "ship/receiver.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <utility>

#include "format/wire.h"
#include "ship/base_exchange.h"

namespace vmshadow::ship {
namespace {

using format::RecordType;

constexpr std::chrono::milliseconds kReplyWithin{5000};
constexpr std::chrono::milliseconds kLastWordsPatience{1000};
// The accepting thread's, which must not be kept.
constexpr std::chrono::milliseconds kAcceptorsPatience{50};

/// Appends a record whose body has an append_body().
template <class Body>
std::vector<std::byte> make_record(const format::RecordHead& head, const Body& body) {
  std::vector<std::byte> out;
  const std::size_t start = format::begin_record(out);
  format::append_body(out, body);
  format::finish_record(out, start, head);
  return out;
}

// Tells the peer why, as far as it still listens.
void refuse(RecordChannel& channel, const Error& error, std::chrono::milliseconds patience) {
  const auto record =
      make_record({RecordType::refusal, 0, {}, {}, {}}, format::Refusal{error.code, error.message});
  if (auto sent = channel.write(record, io::deadline_after(patience)); !sent) {
    spdlog::debug("refusal not delivered: {}", sent.error().message);
    return;
  }
  channel.linger(io::deadline_after(patience));
}

}  // namespace

Result<std::unique_ptr<Receiver>> Receiver::listen(const io::TcpAddress& address, EpochSink& sink,
                                                   ReceiverOptions options) {
  VMSHADOW_ASSIGN(UniqueFd listener, io::listen_tcp(address));
  VMSHADOW_ASSIGN(const std::uint16_t port, io::local_port(listener.get()));
  return std::unique_ptr<Receiver>(new Receiver(std::move(listener), port, sink, options));
}

Receiver::Receiver(UniqueFd listener, std::uint16_t port, EpochSink& sink, ReceiverOptions options)
    : listener_(std::move(listener)),
      port_(port),
      sink_(sink),
      options_(options),
      connections_(
          options.connections_max, [this](UniqueFd fd) { serve_connection(std::move(fd)); },
          [most = options.connections_max](UniqueFd fd) {
            RecordChannel channel(std::move(fd));
            refuse(channel,
                   Error{Errc::in_use, fmt::format("the store already serves {} connections, or "
                                                   "its host has no thread for another",
                                                   most)},
                   kAcceptorsPatience);
          }) {}

Status Receiver::serve(int wake_fd) { return connections_.accept_from(listener_.get(), wake_fd); }

void Receiver::serve_connection(UniqueFd fd) const {
  const std::string peer = io::peer_text(fd.get());
  RecordChannel channel(std::move(fd));
  const auto status = serve_session(channel, peer);
  if (status) return;
  if (status.error().code != Errc::closed) {
    spdlog::warn("{}: {}", peer, status.error().message);
    refuse(channel, status.error(), kLastWordsPatience);
  } else {
    spdlog::info("{}: {}", peer, status.error().message);
  }
}

Status Receiver::serve_session(RecordChannel& channel, const std::string& peer) const {
  VMSHADOW_ASSIGN(
      const RecordChannel::Record greeting,
      channel.read(io::deadline_after(options_.hello_within), format::kWireBodyBytesMax));
  if (greeting.prefix.head.type != RecordType::hello) {
    return fail(Errc::protocol, "a connection must begin with a hello");
  }
  VMSHADOW_ASSIGN(const format::Hello hello, format::decode_hello(greeting.body()));
  VMSHADOW_ASSIGN(const std::uint16_t version, format::choose_version(hello));
  const VmId vm = vm_id(hello.vm_name);
  if (greeting.prefix.head.vm != vm) return fail(Errc::protocol, "the hello contradicts itself");

  VMSHADOW_ASSIGN(const auto session, sink_.open_session(hello.vm_name, peer));
  const Generation generation = session->generation();
  spdlog::info("{}: VM '{}' is protected, generation {}, from epoch {}", peer, hello.vm_name,
               generation.value, session->next_epoch().value);
  const auto welcome = make_record({RecordType::welcome, 0, vm, generation, session->next_epoch()},
                                   format::Welcome{version, 0, generation, session->next_epoch()});
  VMSHADOW_TRY(channel.write(welcome, io::deadline_after(kReplyWithin)));

  bool asked = version < format::kWireVersionWithBase;  // once, before the first epoch
  std::optional<Generation> base;
  for (;;) {
    VMSHADOW_ASSIGN(const RecordChannel::Record record,
                    channel.read(io::deadline_after(options_.silence)));
    const format::RecordHead& head = record.prefix.head;
    if (head.vm != vm || (head.generation != generation && head.generation != base)) {
      return fail(Errc::protocol, "a record of another VM or generation");
    }
    if (head.type == RecordType::base_query && !std::exchange(asked, true)) {
      VMSHADOW_ASSIGN(base, answer_base_query(channel, vm, record.body(), *session));
    } else if (head.type == RecordType::ping) {
      std::vector<std::byte> pong;
      format::append_record(pong, {RecordType::pong, 0, vm, generation, {}}, {});
      VMSHADOW_TRY(channel.write(pong, io::deadline_after(kReplyWithin)));
    } else if (head.type == RecordType::epoch_end) {
      VMSHADOW_ASSIGN(const CommitReceipt receipt, session->commit(record.bytes));
      const auto ack = make_record({RecordType::ack, 0, vm, generation, receipt.epoch},
                                   format::Ack{receipt.committed_wall, receipt.sync});
      VMSHADOW_TRY(channel.write(ack, io::deadline_after(kReplyWithin)));
    } else if (format::is_epoch_record(head.type)) {
      asked = true;
      VMSHADOW_TRY(session->append(record.bytes));
    } else {
      return fail(Errc::protocol, fmt::format("a record of type {:#05x} from a sidecar",
                                              static_cast<unsigned>(head.type)));
    }
  }
}

Result<std::optional<Generation>> Receiver::answer_base_query(RecordChannel& channel,
                                                              const VmId& vm, ByteSpan body,
                                                              EpochSession& session) const {
  VMSHADOW_ASSIGN(const format::BaseQuery query, format::decode_base_query(body));
  const auto image = session.base();
  if (!image) {
    VMSHADOW_TRY(send_no_base(channel, vm, image.error().message, options_.silence));
    return std::nullopt;
  }
  VMSHADOW_ASSIGN(
      const bool whole,
      send_base(channel, vm, **image, PageHasher::with_secret(query.secret), options_.silence));
  if (!whole) return std::nullopt;
  session.may_build_on_base();
  return (*image)->info().generation;
}

}  // namespace vmshadow::ship
