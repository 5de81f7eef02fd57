// The seam between the wire and the store: where a receiver delivers one VM's encoded records.
//
// Records are those of format/record.h, each already checked by itself (prefix, checksums, bounds).
// Whether together they are an epoch (sequence, counts, chain) the store checks. It keeps them byte
// for byte: the sidecar's checksums guard them from end to end.
//
// An epoch's records are labelled with the generation of the full epoch it builds on. Who may write
// is another matter: each session has a generation of its own, and only the newest session goes on.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include <vmshadow/clock.h>
#include <vmshadow/result.h>
#include <vmshadow/shadow_reader.h>
#include <vmshadow/types.h>

namespace vmshadow {

/// An epoch made durable.
struct CommitReceipt {
  Epoch epoch;
  WallTime committed_wall;           ///< the store's clock, after its commit record was durable
  std::chrono::microseconds sync{};  ///< how long the last write and sync took
};

/// The right to append one VM's epochs. Destroying it ends the session; an epoch not committed by
/// then never counts. Used by one thread at a time.
class EpochSession {
 public:
  virtual ~EpochSession() = default;
  [[nodiscard]] virtual Generation generation() const = 0;
  /// The number the next epoch must carry.
  [[nodiscard]] virtual Epoch next_epoch() const = 0;
  /// The newest committed epoch, for the peer to compare its pages with. Errc::not_found if there
  /// is none, Errc::corrupt if it is known to be damaged.
  [[nodiscard]] virtual Result<std::unique_ptr<EpochImage>> base() const = 0;
  /// The peer knows every page of base(): the session's first epoch may carry that one's
  /// generation, instead of generation(), and hold only what changed since. Before its first
  /// record.
  virtual void may_build_on_base() = 0;
  /// Takes one whole record (prefix and body) of the epoch next_epoch(). Copies what it keeps.
  [[nodiscard]] virtual Status append(ByteSpan record) = 0;
  /// Takes the record that ends the epoch, makes all of it durable, and only then returns.
  [[nodiscard]] virtual Result<CommitReceipt> commit(ByteSpan end_record) = 0;
  /// Drops what was appended since the last commit.
  virtual void abandon() = 0;
};

class EpochSink {
 public:
  virtual ~EpochSink() = default;
  /// Opens the session of `vm_name` for the peer described by `peer` (for messages), and raises the
  /// VM's generation. Errc::in_use: another session for this VM is alive; the message names it.
  [[nodiscard]] virtual Result<std::unique_ptr<EpochSession>> open_session(
      const std::string& vm_name, const std::string& peer) = 0;
};

}  // namespace vmshadow
