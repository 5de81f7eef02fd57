// The sidecar's end of the wire: says hello, sends records, listens for acknowledgements.
//
//   connect ─► greeted ─► (send*, acks on a thread of its own) ─► failed or closed
//
// A link that neither takes our bytes nor answers our pings within `silence` counts as dead. One
// thread sends; the handlers are called on the listening thread.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include <vmshadow/result.h>
#include <vmshadow/types.h>

#include "format/wire.h"
#include "io/socket.h"
#include "ship/base_exchange.h"
#include "ship/record_channel.h"

namespace vmshadow::ship {

struct SenderOptions {
  std::chrono::milliseconds connect{5000};     ///< connecting and being welcomed
  std::chrono::milliseconds ping_every{5000};  ///< when nothing else was heard
  std::chrono::milliseconds silence{30000};    ///< without a byte from the store: the link is dead
};

class Sender {
 public:
  using AckHandler = std::function<void(Epoch, const format::Ack&)>;
  /// Called once, when the link is lost or the store refused; the error is for the operator.
  using FailureHandler = std::function<void(const Error&)>;

  /// Connects, says hello for `vm_name`, waits to be welcomed. A store's refusal comes back as its
  /// own code and sentence. Listening starts with start().
  [[nodiscard]] static Result<std::unique_ptr<Sender>> connect(const io::TcpAddress& store,
                                                               const std::string& vm_name,
                                                               SenderOptions options = {});
  ~Sender();

  /// Asks what the store has of the VM (ship/base_exchange.h). Before start(). Of `request` only
  /// ram_bytes_max and the functions count.
  [[nodiscard]] Result<BaseAnswer> fetch_base(const PageHasher& hasher, BaseRequest request);
  /// Starts the listening thread. Once.
  void start(AckHandler on_ack, FailureHandler on_failure);
  /// Sends whole records; blocks while the link does. Errc::timed_out once it took nothing for
  /// `silence`.
  [[nodiscard]] Status send(ByteSpan records);
  /// Ends the connection; no handler is called afterwards. Idempotent.
  void close();

  [[nodiscard]] const format::Welcome& welcome() const { return welcome_; }
  [[nodiscard]] const std::string& store_text() const { return store_text_; }

 private:
  Sender(RecordChannel channel, format::Welcome welcome, VmId vm, std::string store_text,
         SenderOptions options);
  void listen();
  [[nodiscard]] Status listen_until_failure();
  [[nodiscard]] Status ping();

  RecordChannel channel_;
  const format::Welcome welcome_;
  const VmId vm_;
  const std::string store_text_;
  const SenderOptions options_;
  std::mutex write_mutex_;
  AckHandler on_ack_;
  FailureHandler on_failure_;
  std::atomic<bool> closing_{false};
  /// When the link last took bytes of ours: a full pass over a slow link is no silence.
  std::atomic<io::Deadline> progress_;
  std::thread listener_;
};

}  // namespace vmshadow::ship
