// What a vm_state record of a VM must say at any moment. Safe from several threads.
//
// A change that is under way counts already: a journal segment that begins meanwhile must not say
// the older state again, or a later reader would believe it once the segment with the change is
// archived.
#pragma once

#include <map>
#include <mutex>
#include <set>
#include <vector>

#include <vmshadow/types.h>

#include "format/store_state.h"
#include "store/journal_index.h"

namespace vmshadow::store {

class VmStates {
 public:
  VmStates(const JournalIndex& index, RetentionPolicy store_policy)
      : index_(index), store_policy_(store_policy) {}

  /// These epochs are about to be dropped; end_drop() once they are out of the index, or stay.
  void begin_drop(const VmId& vm, const std::vector<Epoch>& epochs);
  void end_drop(const VmId& vm);

  [[nodiscard]] format::VmState make(const VmId& vm, const format::JournalPosition& durable) const;
  /// The VMs of which states can be written: those whose name is known.
  [[nodiscard]] std::vector<VmId> vms() const;
  /// A vm_state record of each of them, whole and aligned.
  [[nodiscard]] std::vector<std::byte> records(const std::vector<VmId>& vms) const;
  [[nodiscard]] std::vector<std::byte> records() const { return records(vms()); }
  [[nodiscard]] RetentionPolicy policy_of(const VmId& vm) const;

 private:
  const JournalIndex& index_;
  const RetentionPolicy store_policy_;
  mutable std::mutex mutex_;
  std::map<VmId, std::set<Epoch>> dropping_;
};

}  // namespace vmshadow::store
