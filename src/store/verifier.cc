#include "store/verifier.h"

#include <algorithm>

#include "store/keyring.h"
#include "store/record_check.h"

namespace vmshadow::store {
namespace {

/// Opens sealed records, and remembers for want of which keys it could not.
class SealedCheck {
 public:
  SealedCheck(std::shared_ptr<const crypt::KeySource> keys, const JournalIndex& index)
      : keyring_(std::move(keys)), index_(index) {}

  Status check(const GoodRecord& record, PageScratch& scratch) {
    const std::string name = index_.name_of(record.prefix.head.vm);
    if (unopened.contains(name)) return {};
    if (auto opened = keyring_.open(name, record.prefix, record.body, plain_); !opened) {
      if (opened.error().code == Errc::corrupt) return opened;
      unopened.emplace(name, std::move(opened).error());
      return {};
    }
    GoodRecord plain{record.offset, record.prefix, plain_};
    plain.prefix.head.type = format::plain_type(record.prefix.head.type);
    return check_decodes(plain, LostPages::refused, scratch);
  }

  std::map<std::string, Error> unopened;

 private:
  const Keyring keyring_;
  const JournalIndex& index_;
  std::vector<std::byte> plain_;
};

}  // namespace

Result<VerifyReport> Verifier::run(const std::string& path, const Progress& progress,
                                   std::shared_ptr<const crypt::KeySource> keys) {
  VMSHADOW_ASSIGN(const StoreDirectory directory, StoreDirectory::open(path));
  // Whose the records are, whatever the order they come in: keys go by the VM's name.
  VMSHADOW_ASSIGN(const Recovery known, recover(directory));
  SealedCheck sealed(std::move(keys), *known.index);
  PageScratch scratch;
  ScanHooks hooks;
  hooks.progress = progress;
  hooks.check = [&](const GoodRecord& record) {
    if (format::is_sealed(record.prefix.head.type)) return sealed.check(record, scratch);
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
  report.unopened = std::move(sealed.unopened);
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
