// The sink behind capture: encodes an epoch's pages while they arrive and ships them to the store.
//
//   capture thread ──► queue ──► shipping thread: encode, send ──► store
//                        ▲                                           │ ack
//        wait_for_room ──┘◄── listening thread: committed ◄──────────┘
//
// Backpressure: while epochs wait to be sent or acknowledged the caller takes no further one, so
// the guest's later writes gather in QEMU's own dirty bitmap (where the newest page wins for free)
// and only the lag grows. What is held here is at most one epoch over the limit: bounded by guest
// RAM.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <variant>

#include <vmshadow/clock.h>
#include <vmshadow/page_sink.h>
#include <vmshadow/result.h>

#include "base/bounded_queue.h"
#include "base/thread_priority.h"
#include "delta/epoch_encoder.h"
#include "ship/sender.h"

namespace vmshadow::ship {

/// An epoch that the store has acknowledged as durable.
struct CommittedEpoch {
  Epoch epoch;
  MonotonicTime cut;
  WallTime cut_wall;
  /// From the cut to the acknowledgement.
  std::chrono::microseconds commit_latency{};
  /// The lag just before this acknowledgement: since the cut of the epoch committed before it (for
  /// the first epoch: its own commit latency). The worst the RPO was in between.
  std::chrono::microseconds peak_lag{};
  std::chrono::microseconds store_sync{};  ///< the store's own last write and sync
  delta::EncodeStats encoded;
};

struct ShipperOptions {
  SenderOptions sender;
  /// Asks the store for what it has of the VM, so that only what changed since is shipped.
  bool build_on_committed = true;
  /// What the VM may have at most: bounds what a store can make us allocate.
  std::uint64_t ram_bytes_max = kRamBlockBytesMax;
  /// While the store is asked; both may be empty, see BaseRequest.
  std::function<void(const BaseProgress&)> on_base_progress;
  std::function<bool()> cancelled;
  /// Queued page memory above which the capture is asked to wait.
  std::size_t queued_bytes_max = std::size_t{64} << 20;
  /// Epochs cut but not acknowledged, above which the capture is asked to wait.
  std::size_t unacknowledged_max = 4;
  /// Of the shipping thread from the first epoch behind a full pass on. Until that pass is durable
  /// the VM is not protected at all, and a reader that lags makes QEMU repeat it.
  ThreadPriority encoder_priority = ThreadPriority::normal;
};

class EpochShipper final : public PageSink {
 public:
  using CommitHandler = std::function<void(const CommittedEpoch&)>;

  /// Connects to the store and is granted a generation. `on_commit` is called on the listening
  /// thread, in order. `clock` outlives the shipper.
  [[nodiscard]] static Result<std::unique_ptr<EpochShipper>> connect(const io::TcpAddress& store,
                                                                     const std::string& vm_name,
                                                                     const Clock& clock,
                                                                     CommitHandler on_commit,
                                                                     ShipperOptions options = {});
  ~EpochShipper() override;

  [[nodiscard]] Generation generation() const { return sender_->welcome().generation; }
  [[nodiscard]] Epoch first_epoch() const { return sender_->welcome().next_epoch; }
  /// The committed epoch that the first one will build on, if it is of the same machine.
  [[nodiscard]] std::optional<Epoch> builds_on() const { return builds_on_; }

  void begin_epoch(const EpochBegin& begin) override;
  void add(PageBatch batch) override;
  void end_epoch(EpochEnd end) override;
  void abandon_epoch() override;
  [[nodiscard]] Result<bool> wait_for_room(std::chrono::nanoseconds limit) override;

  /// Nothing is captured any more: what is left is encoded at normal priority, where that is
  /// allowed.
  void hurry();
  /// Waits until every epoch ended so far is acknowledged. Errc::timed_out, or why the link failed.
  [[nodiscard]] Status flush(std::chrono::milliseconds timeout);
  /// lz4's acceleration from the next epoch on (EncodeEffort).
  void set_acceleration(int acceleration) { acceleration_ = acceleration; }
  /// Since the cut of the newest committed epoch; nullopt before the first commit.
  [[nodiscard]] std::optional<std::chrono::microseconds> lag() const;
  /// Page memory that waits to be encoded, in bytes; takes no lock.
  [[nodiscard]] std::size_t queued_bytes() const { return queue_.weight(); }
  /// Epochs cut but not acknowledged.
  [[nodiscard]] std::size_t unacknowledged() const;
  /// Why shipping ended; nullopt while it works.
  [[nodiscard]] std::optional<Error> failure() const;

 private:
  struct Begin {
    Epoch epoch;
    std::unique_ptr<MachineDescription> machine;  // set for a full pass
  };
  struct Abandon {};
  using Item = std::variant<Begin, PageBatch, EpochEnd, Abandon>;
  struct InFlight {
    Epoch epoch;
    MonotonicTime cut;
    WallTime cut_wall;
    delta::EncodeStats encoded;
  };

  EpochShipper(std::unique_ptr<Sender> sender, delta::EpochEncoder encoder,
               std::optional<Epoch> builds_on, const Clock& clock, CommitHandler on_commit,
               ShipperOptions options);
  void run();
  [[nodiscard]] Status encode_and_send(Item item);
  [[nodiscard]] Status send_encoded(std::size_t keep_below);
  void on_ack(Epoch epoch, const format::Ack& ack);
  void set_failure(const Error& error);

  std::unique_ptr<Sender> sender_;
  const std::optional<Epoch> builds_on_;
  const Clock& clock_;
  const CommitHandler on_commit_;
  const ShipperOptions options_;
  BoundedQueue<Item> queue_;

  // Of the capture thread. While the guest stands still for an epoch its pages are only kept: the
  // encoder would compete with QEMU and the drain for the cores and lengthen the pause.
  bool hold_ = false;
  std::vector<PageBatch> held_;

  std::atomic<int> acceleration_{1};
  std::atomic<pid_t> lowered_{0};  // the shipping thread, once its priority is lowered

  // Of the shipping thread.
  delta::EpochEncoder encoder_;
  std::vector<std::byte> out_;

  mutable std::mutex mutex_;  // guards what follows
  mutable std::condition_variable changed_;
  std::size_t unacknowledged_ = 0;  // ended by capture, not acknowledged
  std::deque<InFlight> in_flight_;  // their epoch_end is sent (or about to be)
  std::optional<MonotonicTime> committed_cut_;
  std::optional<Error> failure_;

  std::thread thread_;  // last: uses all of the above
};

}  // namespace vmshadow::ship
