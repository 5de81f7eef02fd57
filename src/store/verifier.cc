#include "store/verifier.h"

#include <algorithm>

#include "delta/page_group_codec.h"

namespace vmshadow::store {
namespace {

Status check_decodes(const GoodRecord& record, std::vector<std::byte>& pages) {
  if (record.prefix.head.type != format::RecordType::page_group) return {};
  VMSHADOW_ASSIGN(const format::PageGroup group, format::decode_page_group(record.body));
  return delta::decode_pages(group, MutableByteSpan(pages).first(group.page_count * kPageBytes));
}

}  // namespace

Result<VerifyReport> Verifier::run(const std::string& path, const Progress& progress) {
  VMSHADOW_ASSIGN(const StoreDirectory directory, StoreDirectory::open(path));
  std::vector<std::byte> pages(format::kGroupPagesMax * kPageBytes);
  ScanHooks hooks;
  hooks.progress = progress;
  hooks.check = [&](const GoodRecord& record) { return check_decodes(record, pages); };
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
