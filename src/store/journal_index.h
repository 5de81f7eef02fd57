// All VMs and their committed epochs, in memory. Built by recovery's scan, extended at each commit.
//
// Safe from several threads: readers copy shared pointers to immutable EpochIndexes. Which epochs
// can be restored is decided here: an epoch needs itself and the pages of every epoch back to the
// full one it builds on, all of one generation, without a gap, and undamaged.
#pragma once

#include <map>
#include <optional>
#include <shared_mutex>
#include <string>
#include <vector>

#include <vmshadow/result.h>
#include <vmshadow/shadow_reader.h>
#include <vmshadow/types.h>

#include "store/epoch_index.h"

namespace vmshadow::store {

class JournalIndex {
 public:
  /// A generation was given out; `name` may be empty if its grant record is damaged.
  void add_grant(const VmId& vm, const std::string& name, Generation generation);
  /// The next committed epoch of a VM: its number is above all before.
  void add_epoch(const VmId& vm, EpochIndexPtr epoch);
  /// An epoch that must have been committed, but of which nothing is left.
  void add_lost(const VmId& vm, Epoch epoch, const Damage& damage);

  [[nodiscard]] std::vector<VmInfo> vms() const;
  [[nodiscard]] std::optional<VmInfo> vm(const VmId& id) const;
  /// The VM's name, or its id in hex if that is all that is known.
  [[nodiscard]] std::string name_of(const VmId& id) const;
  [[nodiscard]] Generation generation_of(const VmId& id) const;
  /// The newest epoch, damaged or lost ones included.
  [[nodiscard]] std::optional<Epoch> last_epoch(const VmId& id) const;

  /// The epochs that make up the image of `epoch`: the full one first, `epoch` last.
  /// Errc::not_found, or Errc::corrupt with the damage that is in the way.
  [[nodiscard]] Result<std::vector<EpochIndexPtr>> chain(const std::string& vm_name,
                                                         Epoch epoch) const;

 private:
  struct Vm {
    std::string name;
    Generation generation;
    std::vector<EpochIndexPtr> epochs;
    std::map<Epoch, Damage> lost;
  };
  [[nodiscard]] static VmInfo info_of(const VmId& id, const Vm& vm);
  [[nodiscard]] static bool builds_on(const EpochIndex& later, const EpochIndex& earlier);

  mutable std::shared_mutex mutex_;
  std::map<VmId, Vm> vms_;
};

}  // namespace vmshadow::store
