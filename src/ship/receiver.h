// The store's end of the wire: accepts sidecars, checks what they send, hands it to the epoch sink.
//
// One thread per connection (a store serves hundreds of VMs, not tens of thousands), at most
// `connections_max`. A connection:
//
//   accepted ─► hello (within `hello_within`) ─► welcome ─► records… ─► closed
//                        └──────────── refusal, closed ◄──────┘
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include <vmshadow/epoch_sink.h>
#include <vmshadow/result.h>

#include "base/unique_fd.h"
#include "io/connection_threads.h"
#include "io/socket.h"
#include "ship/record_channel.h"

namespace vmshadow::ship {

struct ReceiverOptions {
  std::size_t connections_max = 1024;
  std::chrono::milliseconds hello_within{5000};
  /// A sidecar pings every few seconds; one that is silent for this long is gone.
  std::chrono::milliseconds silence{30000};
};

class Receiver {
 public:
  /// `sink` outlives the receiver. Port 0 picks a free one, see port().
  [[nodiscard]] static Result<std::unique_ptr<Receiver>> listen(const io::TcpAddress& address,
                                                                EpochSink& sink,
                                                                ReceiverOptions options = {});

  [[nodiscard]] std::uint16_t port() const { return port_; }
  /// Accepts until `wake_fd` becomes readable. Errors only of the listening socket itself.
  /// Sessions go on until the receiver is destroyed, which ends them.
  [[nodiscard]] Status serve(int wake_fd);

 private:
  Receiver(UniqueFd listener, std::uint16_t port, EpochSink& sink, ReceiverOptions options);
  void serve_connection(UniqueFd fd) const;
  [[nodiscard]] Status serve_session(RecordChannel& channel, const std::string& peer) const;
  /// Answers a base_query: the label that the session's records may carry besides its generation.
  [[nodiscard]] Result<std::optional<Generation>> answer_base_query(RecordChannel& channel,
                                                                    const VmId& vm, ByteSpan body,
                                                                    EpochSession& session) const;

  UniqueFd listener_;
  const std::uint16_t port_;
  EpochSink& sink_;
  const ReceiverOptions options_;
  io::ConnectionThreads connections_;
};

}  // namespace vmshadow::ship
