#include "store/verifier.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>

#include "store/damaged_group.h"
#include "store/keyring.h"
#include "store/record_check.h"
#include "store/segment_files.h"

namespace vmshadow::store {
namespace {

/// Opens sealed records, and remembers for want of which keys it could not.
class SealedCheck {
 public:
  SealedCheck(std::shared_ptr<const crypt::KeySource> keys, const StoreDirectory& directory)
      : keyring_(std::move(keys)), directory_(directory) {}

  Status check(const GoodRecord& record, PageScratch& scratch) {
    const std::string name = name_of(record.prefix.head.vm);
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
  /// Keys go by the VM's name, which may stand anywhere: the store is looked through once more.
  std::string name_of(const VmId& vm) {
    if (names_ == nullptr) {
      auto known = recover(directory_);
      names_ = known ? std::move(known->index) : std::make_shared<JournalIndex>();
    }
    return names_->name_of(vm);
  }

  const Keyring keyring_;
  const StoreDirectory& directory_;
  std::shared_ptr<const JournalIndex> names_;
  std::vector<std::byte> plain_;
};

/// The pages of a damaged group that can be read all the same, as bits.
std::uint16_t whole_pages(const SegmentFiles& segments, const VmId& vm, const RecordPlace& place) {
  if (place.pages() == 0) return 0;
  std::vector<std::byte> record(place.record_bytes());
  if (!segments.read_raw(place.segment(), place.offset(), record)) return 0;
  return DamagedGroup(place, vm, record).whole();
}

void name_whole_pages(std::vector<Damage>& damage, const RecordPlace& place, std::uint16_t whole) {
  for (Damage& found : damage) {
    if (found.at != place.position()) continue;
    found.what +=
        fmt::format("; {} of its {} pages are whole", std::popcount(whole), place.pages());
  }
}

}  // namespace

Result<VerifyReport> Verifier::run(const std::string& path, const Progress& progress,
                                   std::shared_ptr<const crypt::KeySource> keys) {
  VMSHADOW_ASSIGN(const StoreDirectory directory, StoreDirectory::open(path));
  SealedCheck sealed(std::move(keys), directory);
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
  const SegmentFiles segments(recovery.catalog, std::make_shared<const Keyring>(nullptr));
  for (const auto& [owner, place] : recovery.damaged_places) {
    const std::uint16_t whole = whole_pages(segments, owner, place);
    if (whole != 0) name_whole_pages(report.damage, place, whole);
    for (VmInfo& vm : report.vms) {
      const std::vector<Epoch> needing =
          recovery.index->epochs_needing(vm.id, place, static_cast<std::uint16_t>(~whole));
      std::erase_if(vm.epochs, [&](const EpochInfo& info) {
        return std::binary_search(needing.begin(), needing.end(), info.epoch);
      });
    }
  }
  return report;
}

}  // namespace vmshadow::store
