// All VMs and their kept epochs, in memory. Built when a store is opened, extended at each commit,
// changed by thinning and by moving records.
//
// Safe from several threads: readers copy shared pointers to immutable EpochIndexes. Which epochs
// can be restored is decided here: an epoch needs itself and the pages of every kept epoch back to
// the one that holds every page by itself, all of one generation and undamaged.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <shared_mutex>
#include <string>
#include <vector>

#include <vmshadow/result.h>
#include <vmshadow/shadow_reader.h>
#include <vmshadow/types.h>

#include "store/epoch_index.h"
#include "store/retention.h"

namespace vmshadow::store {

/// What is set for a VM.
struct VmSettings {
  std::uint64_t version{};                ///< of the vm_state that says so; 0: none yet
  std::optional<RetentionPolicy> policy;  ///< nullopt: the store's
  std::uint64_t quota_bytes{};            ///< 0: none
  std::set<Epoch> pins;
};

class JournalIndex {
 public:
  /// A generation was given out; `name` may be empty if its grant record is damaged.
  void add_grant(const VmId& vm, const std::string& name, Generation generation);
  /// The next committed epoch of a VM: its number is above all before.
  void add_epoch(const VmId& vm, EpochIndexPtr epoch);
  /// An epoch that must have been committed, but of which nothing is left. False: known already.
  bool add_lost(const VmId& vm, Epoch epoch, const Damage& damage);
  /// The damage of the first epoch of [from, before) that was lost.
  [[nodiscard]] std::optional<Damage> lost_between(const VmId& vm, Epoch from, Epoch before) const;
  void set_settings(const VmId& vm, VmSettings settings);
  /// Puts other EpochIndexes in the place of some, or (null) takes them out. All must be there.
  void replace_epochs(const VmId& vm, const std::map<Epoch, EpochIndexPtr>& changes);

  [[nodiscard]] std::vector<VmInfo> vms() const;
  [[nodiscard]] std::optional<VmInfo> vm(const VmId& id) const;
  /// The VM of that name, or that vms() calls so because its name is lost.
  [[nodiscard]] VmId id_of(const std::string& name) const;
  /// The VM's name, or its id in hex if that is all that is known.
  [[nodiscard]] std::string name_of(const VmId& id) const;
  /// The name is known. (Its grant may have been damaged.)
  [[nodiscard]] bool is_named(const VmId& id) const;
  [[nodiscard]] Generation generation_of(const VmId& id) const;
  [[nodiscard]] VmSettings settings_of(const VmId& id) const;
  [[nodiscard]] std::vector<VmId> ids() const;
  /// The number of the VM's next epoch: above all there ever were, damaged, lost and dropped ones
  /// included.
  [[nodiscard]] Epoch next_epoch(const VmId& id) const;
  /// Numbers below `next` are taken.
  void raise_next_epoch(const VmId& id, Epoch next);
  /// All of a VM's kept epochs, damaged ones included, rising.
  [[nodiscard]] std::vector<EpochIndexPtr> epochs(const VmId& id) const;

  /// The epochs that make up the image of `epoch`: the full one first, `epoch` last.
  /// Errc::not_found, or Errc::corrupt with the damage that is in the way.
  [[nodiscard]] Result<std::vector<EpochIndexPtr>> chain(const std::string& vm_name,
                                                         Epoch epoch) const;

  /// The kept epochs whose image has pages or device state from the record at `place`; of a group,
  /// pages of the slots that are set in `slots`.
  [[nodiscard]] std::vector<Epoch> epochs_needing(const VmId& id, const RecordPlace& place,
                                                  std::uint16_t slots = 0xffff) const;

  struct Totals {
    std::uint64_t epochs{};
    std::uint64_t page_versions{};
    std::uint64_t memory_bytes{};
    std::map<SegmentId, std::uint64_t> live_bytes;
  };
  [[nodiscard]] Totals totals() const;

 private:
  struct Vm {
    std::string name;
    Generation generation;
    Epoch next_epoch;
    std::vector<EpochIndexPtr> epochs;
    std::map<Epoch, Damage> lost;
    VmSettings settings;
  };
  [[nodiscard]] static VmInfo info_of(const VmId& id, const Vm& vm);
  [[nodiscard]] static bool builds_on(const EpochIndex& later, const EpochIndex& earlier);

  mutable std::shared_mutex mutex_;
  std::map<VmId, Vm> vms_;
};

}  // namespace vmshadow::store
