// The one thread that writes the journal: places pieces of epochs, makes commits durable in groups,
// rolls segments, and knows what to do when the disk refuses.
//
//             write fails: disk full ──► cut back to the durable end ──► (cannot) ──┐
//   writing ─┤                              └─► the epochs behind it are refused     ├─► poisoned
//             any other failure ─────────────────────────────────────────────────────┘
//
// Everything before durable() was synced. While a sync runs, commits of other VMs gather in the
// queue and share the next one. A poisoned log refuses everything with the failure that poisoned
// it.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <future>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include <vmshadow/clock.h>
#include <vmshadow/epoch_sink.h>
#include <vmshadow/result.h>
#include <vmshadow/types.h>

#include "format/journal.h"
#include "io/append_file.h"
#include "store/directory.h"
#include "store/epoch_index.h"

namespace vmshadow::store {

/// An epoch on its way into the log, shared by its session and the writer.
struct EpochInLog {
  format::RecordHead head;  ///< VM, generation, epoch
  std::string vm_name;
  /// Filled by the writer; the session reads them once commit() has returned.
  EpochPlaces places;
  /// Both guarded by the writer's mutex.
  std::optional<Error> failure;
  bool abandoned = false;
};
using EpochInLogPtr = std::shared_ptr<EpochInLog>;

/// Whole records, each padded to the record alignment.
struct LogPiece {
  struct Record {
    std::uint32_t offset{};
    std::uint32_t body_bytes{};
    Placing placing;
  };
  std::vector<std::byte> bytes;
  std::vector<Record> records;  ///< those the index needs

  void add(ByteSpan record, Placing placing);
};

struct LogLimits {
  std::uint64_t segment_bytes = std::uint64_t{256} << 20;
  /// What may wait for the disk; append() blocks beyond it.
  std::size_t queue_bytes = std::size_t{16} << 20;
};

class LogWriter {
 public:
  struct Committed {
    CommitReceipt receipt;
    WallTime recorded_wall;  ///< what the commit record says
  };

  /// Goes on at `tail` (a new segment follows if it is nullopt or there is no room), of which
  /// everything before is durable. `next_segment` is the number of the next segment to make.
  LogWriter(const StoreDirectory& directory, io::FileSystem& files, const Clock& clock,
            LogLimits limits, std::unique_ptr<io::AppendFile> file,
            std::optional<format::JournalPosition> tail, SegmentId next_segment);
  /// Writes what is queued and a closing mark. No call may be under way.
  ~LogWriter();
  LogWriter(const LogWriter&) = delete;
  LogWriter& operator=(const LogWriter&) = delete;

  /// Queues a piece; blocks while the queue is full. Fails if the epoch already has.
  [[nodiscard]] Status append(const EpochInLogPtr& epoch, LogPiece piece);
  /// Queues the epoch's last piece (it ends with the epoch_end) and its commit, and waits until
  /// they are durable.
  [[nodiscard]] Result<Committed> commit(const EpochInLogPtr& epoch, LogPiece piece,
                                         std::uint64_t chain);
  /// Makes a grant durable.
  [[nodiscard]] Status grant(const VmId& vm, const std::string& vm_name, Generation generation);
  /// What is queued of this epoch need not be written.
  void abandon(const EpochInLogPtr& epoch);

 private:
  enum class RequestKind { piece, commit, grant };
  struct Request {
    RequestKind kind{};
    LogPiece piece;
    EpochInLogPtr epoch;  ///< for a grant: only head and vm_name count
    std::uint64_t chain{};
    std::promise<Result<Committed>> done;  ///< of commits and grants
    std::vector<std::byte> trailer;        ///< the commit or grant record, made when it is written
    WallTime recorded_wall;
    [[nodiscard]] std::size_t log_bytes() const;
    [[nodiscard]] bool wants_sync() const { return kind != RequestKind::piece; }
  };
  using Batch = std::deque<Request>;

  [[nodiscard]] Result<Committed> submit_and_wait(Request request);
  void push(Request request);
  void run();
  [[nodiscard]] bool take(Batch& batch);
  void write_batch(Batch& batch);
  /// How many requests from `first` on fit the open segment.
  [[nodiscard]] std::size_t fitting(const Batch& batch, std::size_t first) const;
  void write_run(Batch& batch, std::size_t first, std::size_t count);
  [[nodiscard]] Status try_run(Batch& batch, std::size_t first, std::size_t count,
                               MonotonicTime& started);
  void finish_run(Batch& batch, std::size_t first, std::size_t count, MonotonicTime started);
  void make_trailer(Request& request) const;
  [[nodiscard]] Status roll();
  [[nodiscard]] Status make_segment(SegmentId id);
  /// Cuts the log back after a full disk. Whatever lay behind the durable end has failed.
  void cut_back();
  void poison(const Error& error);
  void refuse(Request& request, const Error& error);
  [[nodiscard]] std::optional<Error> failure_of(const Request& request);
  [[nodiscard]] Error no_space(const EpochInLog& epoch, bool is_grant = false) const;
  [[nodiscard]] Error no_space(const Request& request) const {
    return no_space(*request.epoch, request.kind == RequestKind::grant);
  }
  [[nodiscard]] Error poison_error();
  void write_closing_mark();

  const StoreDirectory& directory_;
  io::FileSystem& files_;
  const Clock& clock_;
  const LogLimits limits_;

  // The writer thread's own.
  std::unique_ptr<io::AppendFile> file_;
  format::JournalPosition tail_;
  format::JournalPosition durable_;
  SegmentId next_segment_;
  std::vector<EpochInLogPtr> unsynced_;  ///< epochs with pieces behind durable_
  bool mark_is_due_ = false;             ///< something was made durable that no record says yet

  std::mutex mutex_;
  std::condition_variable work_;
  std::condition_variable room_;
  std::deque<Request> queue_;
  std::size_t queued_bytes_ = 0;  ///< including those being written
  bool stopping_ = false;
  std::optional<Error> poison_;

  std::thread thread_;
};

}  // namespace vmshadow::store
