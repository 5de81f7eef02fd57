// Writes the journal: places pieces of epochs, makes commits durable in groups, rolls segments, and
// knows what to do when the disk refuses.
//
//             write fails: disk full ──► cut back to the durable end ──► (cannot) ──┐
//   writing ─┤                              └─► the epochs behind it are refused     ├─► poisoned
//             any other failure ─────────────────────────────────────────────────────┘
//
// Two threads take turns, so that one writes while the other's sync runs: whoever holds `writing_`
// takes what is queued and writes it, then lets the other on and syncs, for as long as commits wait
// for it. If the other does so already, it goes on writing. While more is queued a batch is begun
// before the one before it is done: the disk never waits for the next one to be put together.
// Beside a sync only so much is written, as there are disks on which a flush waits for as long as
// writes keep coming (under the kernel's mq-deadline, 0.1 to 1 s). Everything before durable_ was
// synced; behind it may lie whole commits that are not answered yet. Whose turn it is in the queue,
// store/fair_queue.h says. A poisoned log refuses everything with the failure that poisoned it.
//
// A segment begins with what a reader must know that comes upon no other (its opening: which
// segments there are, which epochs are kept), and ends with its skeleton and seal when it is full
// or the writer stops. It never goes on in an old one. How it is written, store/open_segment.h
// says.
#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <future>
#include <map>
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
#include "store/epoch_index.h"
#include "store/fair_queue.h"
#include "store/log_limits.h"
#include "store/log_pieces.h"
#include "store/open_segment.h"
#include "store/segment_catalog.h"

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

class LogWriter {
 public:
  struct Committed {
    CommitReceipt receipt;
    WallTime recorded_wall;  ///< what the commit record says
  };

  /// Begins a segment when there is something to write. What `ground` names outlives it; `opening`
  /// is called on the writer's threads.
  LogWriter(const OpenSegment::Ground& ground, const LogLimits& limits,
            OpenSegment::Opening opening);
  /// Writes what is queued and seals the segment. No call may be under way.
  ~LogWriter();
  LogWriter(const LogWriter&) = delete;
  LogWriter& operator=(const LogWriter&) = delete;

  /// An empty piece with room for about `bytes`.
  [[nodiscard]] LogPiece new_piece(std::size_t bytes) { return pieces_.make(bytes); }
  /// Queues a piece; blocks while the VM has too much waiting. Fails if the epoch already has.
  [[nodiscard]] Status append(const EpochInLogPtr& epoch, LogPiece piece);
  /// Queues the epoch's last piece (it ends with the epoch_end) and its commit, and waits until
  /// they are durable.
  [[nodiscard]] Result<Committed> commit(const EpochInLogPtr& epoch, LogPiece piece,
                                         std::uint64_t chain);
  /// Makes a grant durable.
  [[nodiscard]] Status grant(const VmId& vm, const std::string& vm_name, Generation generation);
  /// A record of the journal's own.
  struct Note {
    format::RecordHead head;
    std::string vm_name;  ///< for messages
    /// Appends the body, always as many bytes, given everything before which is durable.
    std::function<void(std::vector<std::byte>& out, const format::JournalPosition& durable)> body;
    /// Both may be empty and are called on the writer's thread, so that no segment begins between
    /// them and what they tell of: the record is about to be written (perhaps more than once); it
    /// was not, and the caller will be told so.
    std::function<void()> writing, refused;
  };
  /// Makes it durable.
  [[nodiscard]] Status note(Note note);
  /// What is queued of this epoch need not be written.
  void abandon(const EpochInLogPtr& epoch);
  /// The epoch is in the index: whoever looks for what is needed finds it there.
  void indexed(const EpochInLogPtr& epoch);

  /// Journal segments before this one hold nothing but what is in the index or will never count,
  /// and are written no more. Safe from any thread.
  [[nodiscard]] SegmentId settled_before() const;
  /// Bytes written to segments so far.
  [[nodiscard]] std::uint64_t written_bytes() const { return written_bytes_; }
  [[nodiscard]] std::uint64_t ingested_bytes() const { return ingested_bytes_; }
  /// Records that wait to be written, and memory kept for the next ones, in bytes.
  [[nodiscard]] std::size_t queued_bytes() const;
  [[nodiscard]] std::size_t kept_memory_bytes() const { return pieces_.kept_bytes(); }
  /// A failed write or sync has ended it.
  [[nodiscard]] bool poisoned() const;

 private:
  enum class RequestKind { piece, commit, grant, note };
  struct Request {
    RequestKind kind{};
    LogPiece piece;
    EpochInLogPtr epoch;  ///< for a grant: only head and vm_name count
    std::uint64_t chain{};
    Note note;  ///< of a note
    std::size_t note_bytes{};
    std::promise<Result<Committed>> done;  ///< of all but pieces
    // Known once it is written:
    std::vector<std::byte> trailer;  ///< the commit, grant or note record
    WallTime recorded_wall;
    MonotonicTime started;
    SegmentOffset end;         ///< durable up to here, it is
    std::size_t held_bytes{};  ///< by queue_
    [[nodiscard]] std::size_t log_bytes() const;
    [[nodiscard]] bool wants_sync() const { return kind != RequestKind::piece; }
  };
  using Batch = std::deque<Request>;
  [[nodiscard]] Result<Committed> submit_and_wait(Request request);
  void push(Request request);
  void run();
  /// Waits where much was written beside a sync that goes on.
  void let_sync_through();
  /// What is queued; nothing where writes are under way and nothing is queued. False: it is over.
  [[nodiscard]] bool take(Batch& batch);
  enum class Waiting { no, yes };
  /// Begins segments where they are needed. Waiting::yes: all of it is written, or refused, when
  /// this returns, and nothing was under way before.
  void write_batch(Batch batch, Waiting waiting);
  /// Takes what has failed, or is not wanted any more, out of a batch.
  void drop_failed(Batch& batch);
  /// Until no commit waits for a sync; at once if the other thread is at it: it sees to these too.
  void sync_what_waits();
  /// How many of the requests, from the first, fit the open segment.
  [[nodiscard]] std::size_t fitting(const Batch& batch) const;
  void begin_run(Batch run);
  void write_run(Batch run);
  [[nodiscard]] Status begin_write(Batch& run);
  [[nodiscard]] Status write_and_wait(Batch& run);
  /// Every request of the run is answered or, a mere piece, in the log; nothing is under way.
  void settle(Batch run, Status written);
  void finish_oldest();
  void finish_all();
  void finish_run(Batch& run);
  void release(Request& request);
  /// Syncs what is written, unless the other thread just did, and answers what waited for it. Needs
  /// no writing_. An error poisons.
  [[nodiscard]] Status make_durable();
  void answer_durable(const OpenSegment::End& target);
  void refuse_pending(const Error& error);
  [[nodiscard]] format::JournalPosition durable() const;
  void make_trailer(Request& request) const;
  [[nodiscard]] bool has_room(const VmId& vm) const;
  [[nodiscard]] Status roll(bool for_upkeep);
  [[nodiscard]] Status make_segment(bool for_upkeep);
  /// Ends the open segment, durably, and lets go of it.
  [[nodiscard]] Status seal();
  /// Cuts the log back after a full disk. Whatever lay behind the durable end has failed.
  void cut_back();
  void poison(const Error& error);
  void refuse(Request& request, const Error& error);
  [[nodiscard]] std::optional<Error> failure_of(const Request& request);
  [[nodiscard]] Error no_space(const EpochInLog& epoch,
                               RequestKind kind = RequestKind::piece) const;
  [[nodiscard]] Error no_space(const Request& request) const {
    return no_space(*request.epoch, request.kind);
  }
  [[nodiscard]] Error poison_error();
  void close_segment();

  SegmentCatalog& catalog_;
  const Clock& clock_;
  const LogLimits limits_;

  std::mutex writing_;   ///< held to take from the queue and write, not to sync; before syncing_
  OpenSegment segment_;  ///< of writing_'s holder
  std::deque<Batch> under_way_;  ///< the same's: runs that were begun, in the log's order

  /// Held to sync: of two at once the second would not hear of what failed in the first. Before
  /// mutex_.
  std::mutex syncing_;

  mutable std::mutex mutex_;
  std::condition_variable work_;
  std::condition_variable room_;
  FairQueue<Request> queue_;  ///< holds bytes until they are written
  bool stopping_ = false;
  std::optional<Error> poison_;
  bool sync_failed_ = false;  ///< nobody knows what of that which was written is on the disk
  std::shared_ptr<io::AppendFile> file_;  ///< the open segment's, for whoever syncs it
  OpenSegment::End written_;              ///< what of it writing_'s holder has written
  OpenSegment::End durable_;              ///< what of that is durable
  std::deque<Request> pending_;           ///< what waits to be durable, in the log's order
  bool has_syncer_ = false;               ///< a thread is in sync_what_waits()
  bool is_syncing_ = false;
  std::size_t beside_sync_bytes_ = 0;  ///< begun since that sync was
  std::condition_variable synced_;
  /// Epochs with pieces behind durable_, and where the last of them ends.
  std::deque<std::pair<EpochInLogPtr, SegmentOffset>> unsynced_;
  SegmentId open_segment_;  ///< the one being written; where none is, behind the last one
  /// Epochs with records in the log that are not in the index, and the first segment with some.
  std::map<const EpochInLog*, SegmentId> unsettled_;

  LogPieces pieces_;

  std::atomic<std::uint64_t> written_bytes_ = 0;
  std::atomic<std::uint64_t> ingested_bytes_ = 0;

  std::array<std::thread, 2> threads_;
};

}  // namespace vmshadow::store
