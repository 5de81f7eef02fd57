// Turns the journal's records, in order, into the index, and works out whom damage costs what.
//
// Per VM one epoch is open at a time:
//
//      record 0          next record          epoch_end            commit
//   ─────────────► open ────────────┐   ─────────────► ended ────────────────► in the index
//                   ▲ └─────────────┘                    │
//                   └────── record 0 again, or another epoch or generation: what was open is dead
//
// A lost record shows itself by a gap in the sequence, a broken chain, a missing epoch_end or
// commit, or a missing epoch number. Such a gap is put down to the bad regions seen since the VM's
// last record.
#pragma once

#include <map>
#include <optional>
#include <vector>

#include <vmshadow/types.h>

#include "format/journal.h"
#include "format/record.h"
#include "store/damage.h"
#include "store/epoch_index.h"
#include "store/journal_index.h"
#include "store/segment_scanner.h"

namespace vmshadow::store {

class IndexBuilder {
 public:
  explicit IndexBuilder(JournalIndex& index) : index_(index) {}

  void add(format::JournalPosition at, const format::RecordPrefix& prefix, ByteSpan body);
  void add_bad(SegmentId segment, const BadRegion& region);
  /// A whole segment that is not there.
  void add_missing_segment(SegmentId segment, std::uint64_t bytes_guess);
  /// No more records. Returns all damage, in journal order.
  [[nodiscard]] std::vector<Damage> finish();
  /// Bytes of which nothing is known: a grant may have been among them.
  [[nodiscard]] std::uint64_t unknown_bytes() const { return unknown_bytes_; }

 private:
  struct OpenEpoch {
    OpenEpoch(Generation g, Epoch e, MachinePtr machine)
        : generation(g), epoch(e), tally(std::move(machine)) {}
    Generation generation;
    Epoch epoch;
    EpochTally tally;
    EpochPlaces places;
    std::optional<format::EpochSummary> end;
    bool end_seen{};
    format::JournalPosition commit_at;  ///< where its commit must stand, once the end was seen
    std::optional<Damage> own_damage;
    std::optional<Damage> base_damage;
  };
  struct Vm {
    std::optional<OpenEpoch> open;
    EpochIndexPtr last;
    MachinePtr machine;
    Generation machine_generation;
    std::size_t mark = 0;  ///< how much damage was known at the VM's last record
  };

  Damage& note(format::JournalPosition at, std::uint64_t bytes, std::string what);
  /// The damage to blame for a loss noticed at `at`.
  Damage blame(const VmId& id, const Vm& vm, Epoch epoch, format::JournalPosition at,
               std::string_view lost);
  OpenEpoch& open_for(const VmId& id, Vm& vm, format::JournalPosition at,
                      const format::RecordHead& head);
  void add_epoch_record(format::JournalPosition at, const format::RecordPrefix& prefix,
                        ByteSpan body);
  void add_end(format::JournalPosition at, const format::RecordPrefix& prefix, ByteSpan body);
  void add_commit(format::JournalPosition at, const format::RecordPrefix& prefix,
                  const format::Commit& commit);
  void add_damaged_body(const Damage& damage, const format::RecordPrefix& prefix);
  void commit_open(const VmId& id, Vm& vm, format::JournalPosition at, WallTime committed_wall);
  /// An ended epoch that is followed by something else than its commit.
  void settle_uncommitted(const VmId& id, Vm& vm, format::JournalPosition at);

  JournalIndex& index_;
  std::map<VmId, Vm> vms_;
  std::vector<Damage> damage_;
  std::uint64_t unknown_bytes_ = 0;
};

}  // namespace vmshadow::store
