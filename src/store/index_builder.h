// Turns the journal's records, in order, into committed epochs, and works out whom damage costs
// what.
//
// Per VM one epoch is open at a time:
//
//      record 0          next record          epoch_end            commit
//   ─────────────► open ────────────┐   ─────────────► ended ────────────────► committed
//                   ▲ └─────────────┘                    │
//                   └────── record 0 again, or another epoch or generation: what was open is dead
//
// A lost record shows itself by a gap in the sequence, a broken chain, a missing epoch_end or
// commit, or a missing epoch number. Such a gap is put down to the bad regions seen since the VM's
// last record. Only at the journal's front may records be missing without harm: they were archived.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <vector>

#include <vmshadow/types.h>

#include "format/journal.h"
#include "format/record.h"
#include "format/store_state.h"
#include "store/damage.h"
#include "store/epoch_assembler.h"
#include "store/epoch_index.h"
#include "store/journal_index.h"
#include "store/segment_scanner.h"

namespace vmshadow::store {

class IndexBuilder {
 public:
  /// Grants and lost epochs go to `index` at once, committed epochs and states to `assembler`.
  IndexBuilder(JournalIndex& index, EpochAssembler& assembler)
      : index_(index), assembler_(assembler) {}

  /// The records of the next journal segment follow.
  void begin_segment(SegmentId segment);
  /// `front` is a whole body or what a skeleton repeats of it.
  void add(format::JournalPosition at, const format::RecordPrefix& prefix, ByteSpan front);
  /// A whole record of a batch that is not what its mark was made for: it may be of what the file
  /// held in an earlier life. A stale one is told by its epoch's number, or changes nothing; what a
  /// stale one could do harm with does not count: what segments there are, and what is kept. False
  /// for such a record.
  [[nodiscard]] bool add_unproven(format::JournalPosition at, const format::RecordPrefix& prefix,
                                  ByteSpan front);
  void add_bad(SegmentId segment, const BadRegion& region);
  /// Whether a record of this epoch can follow: no number below one that was committed comes again.
  [[nodiscard]] bool may_come(const format::RecordHead& head) const;
  /// A whole segment that is not there.
  void add_missing_segment(SegmentId segment, std::uint64_t bytes_guess);
  /// No more records.
  void finish();
  /// All damage, in the order it was found; more may be noted behind it.
  [[nodiscard]] std::vector<Damage>& damage() { return damage_; }
  /// Bytes of which nothing is known: a grant may have been among them.
  [[nodiscard]] std::uint64_t unknown_bytes() const { return unknown_bytes_; }
  /// The segments that there must be, by the newest segment_list and what followed it; empty if
  /// none was seen.
  [[nodiscard]] const std::map<SegmentId, format::SegmentEntry>& expected() const {
    return expected_;
  }
  /// Segments that replace records took out of the store.
  [[nodiscard]] const std::set<SegmentId>& removed() const { return removed_; }

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
    bool seen = false;  ///< a record of one of its epochs
    std::optional<Epoch> last;
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
  /// Whether records that are missing before the first one seen of a VM may have been archived.
  [[nodiscard]] bool front_may_be_archived() const;
  void add_own(format::JournalPosition at, const format::RecordPrefix& prefix, ByteSpan body);
  void add_segment_list(const format::SegmentList& list);
  void add_epoch_record(format::JournalPosition at, const format::RecordPrefix& prefix,
                        ByteSpan front);
  void add_end(format::JournalPosition at, const format::RecordPrefix& prefix, ByteSpan body);
  void add_commit(format::JournalPosition at, const format::RecordPrefix& prefix,
                  const format::Commit& commit);
  void add_damaged_body(const Damage& damage, const format::RecordPrefix& prefix);
  void commit_open(const VmId& id, Vm& vm, format::JournalPosition at, WallTime committed_wall);
  /// An ended epoch that is followed by something else than its commit.
  void settle_uncommitted(const VmId& id, Vm& vm, format::JournalPosition at);

  JournalIndex& index_;
  EpochAssembler& assembler_;
  std::map<VmId, Vm> vms_;
  std::vector<Damage> damage_;
  std::uint64_t unknown_bytes_ = 0;
  std::map<SegmentId, format::SegmentEntry> expected_;
  std::set<SegmentId> removed_;
  std::optional<SegmentId> first_segment_;
  SegmentId segment_;         ///< the one whose records come now
  SegmentId segment_before_;  ///< the journal segment before it; 0: none
};

}  // namespace vmshadow::store
