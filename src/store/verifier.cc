#include "store/verifier.h"

#include <algorithm>

#include "store/record_check.h"

namespace vmshadow::store {
Result<VerifyReport> Verifier::run(const std::string& path, const Progress& progress) {
  VMSHADOW_ASSIGN(const StoreDirectory directory, StoreDirectory::open(path));
  PageScratch scratch;
  ScanHooks hooks;
  hooks.progress = progress;
  hooks.check = [&](const GoodRecord& record) {
    return check_decodes(record, LostPages::refused, scratch);
  };
  VMSHADOW_ASSIGN(Recovery recovery, recover(directory, hooks));
  VerifyReport report;
  report.damage = std::move(recovery.damage);
  report.foreign = std::move(recovery.foreign);
  report.torn_tail = std::move(recovery.torn_tail);
  report.vms = recovery.index->vms();
  report.records = recovery.records;
  report.bytes = recovery.progress.bytes_done;
  // What a skeleton says of a damaged record is in the index: it hurts those who would read it.
  for (VmInfo& vm : report.vms) {
    for (const RecordPlace& place : recovery.damaged_places) {
      const std::vector<Epoch> needing = recovery.index->epochs_needing(vm.id, place);
      std::erase_if(vm.epochs, [&](const EpochInfo& info) {
        return std::binary_search(needing.begin(), needing.end(), info.epoch);
      });
    }
  }
  return report;
}

}  // namespace vmshadow::store
