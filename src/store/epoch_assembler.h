// Puts a VM's kept epochs together from what the journal and the archives hold of them, whatever
// the order it is found in.
//
// Everything is labelled with a generation and an epoch. The journal holds whole committed epochs
// (of the oldest it may hold only the rear: the front was archived), archives hold pieces under the
// labels they were moved with. Under one label the pieces together are the epoch. Labels that are
// not kept epochs (dropped ones, whose pages live on) are merged into the next kept epoch of their
// generation. Which epochs are kept the newest vm_state says; without one, all are.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include <vmshadow/types.h>

#include "format/store_state.h"
#include "store/damage.h"
#include "store/epoch_index.h"
#include "store/journal_index.h"

namespace vmshadow::store {

class EpochAssembler {
 public:
  /// A committed epoch as the journal has it; its `previous` is not set yet.
  void add_committed(const VmId& vm, std::shared_ptr<EpochIndex> epoch);
  /// Whether a type of record, of those in archives, says something of an epoch.
  [[nodiscard]] static bool takes(format::RecordType type);
  /// A record of an archive of such a type; `front` as EpochTally::add() has it. Errc::corrupt if
  /// it is malformed.
  [[nodiscard]] Status add_archived(format::JournalPosition at, const format::RecordPrefix& prefix,
                                    ByteSpan front);
  /// A record of an archive of which only the prefix is good.
  void add_archived_damage(const Damage& damage, const format::RecordPrefix& prefix);
  /// A VM's state; the newest version counts.
  void add_state(const VmId& vm, Generation generation, format::VmState state);
  /// The VM's epochs below this one were committed before its newest state; 0 without one.
  [[nodiscard]] Epoch next_epoch(const VmId& vm) const;
  /// An archive, or part of one, of which nothing is known: it may have held any VM's pages.
  void add_unknown_loss(const Damage& damage);

  /// Fills `index` (VMs it has grants of may be in it). Adds what is missing to `damage`.
  void assemble(JournalIndex& index, std::vector<Damage>& damage);

 private:
  /// What archives hold under one label.
  struct Fragment {
    PageTable::Builder pages;
    std::uint32_t records = 0;
    EpochPlaces places;
    std::map<std::uint32_t, RecordPlace> device;  ///< by sequence
    MachinePtr machine;
    std::optional<format::KeyId> key_id;
    std::optional<format::ArchivedEpoch> numbers;
    std::optional<Damage> own_damage;
    std::optional<Damage> base_damage;
  };
  struct Vm {
    std::map<std::pair<Generation, Epoch>, Fragment> fragments;
    std::map<std::pair<Generation, Epoch>, std::shared_ptr<EpochIndex>> committed;
    std::optional<format::VmState> state;
    Generation generation;
  };
  [[nodiscard]] static std::shared_ptr<EpochIndex> from_fragment(Generation generation, Epoch epoch,
                                                                 Fragment& fragment);
  /// The first epoch of [from, before) that is to be kept; nullopt if none is.
  [[nodiscard]] static std::optional<Epoch> first_kept(const Vm& vm, Epoch from, Epoch before);
  void assemble_vm(const VmId& id, Vm& vm, JournalIndex& index, std::vector<Damage>& damage);

  std::map<VmId, Vm> vms_;
  std::optional<Damage> unknown_loss_;
};

}  // namespace vmshadow::store
