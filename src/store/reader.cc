#include "store/reader.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <set>
#include <string_view>

#include "store/journal_image.h"
#include "store/recovery.h"

namespace vmshadow::store {
namespace {

/// How often reading starts over because segments were archived meanwhile.
constexpr int kReadAttemptsMax = 20;

}  // namespace

Result<std::unique_ptr<Reader>> Reader::open(const std::string& path,
                                             std::shared_ptr<const crypt::KeySource> keys) {
  const auto keyring = std::make_shared<const Keyring>(std::move(keys));
  VMSHADOW_ASSIGN(StoreDirectory directory, StoreDirectory::open(path));
  for (int attempt = 1;; ++attempt) {
    // A store that archives meanwhile may take a segment away: then what was read is old.
    auto recovery = recover(directory);
    if (!recovery && recovery.error().code == Errc::not_found && attempt < kReadAttemptsMax)
      continue;
    if (!recovery) return fail(std::move(recovery).error());
    auto segments = std::make_shared<const SegmentFiles>(recovery->catalog, keyring);
    std::vector<SegmentId> ids;
    for (const auto& [id, facts] : recovery->catalog->all()) {
      if (!facts.missing) ids.push_back(id);
    }
    auto held = segments->hold(ids);
    if (!held && held.error().code == Errc::not_found && attempt < kReadAttemptsMax) continue;
    if (!held) return fail(std::move(held).error());
    auto reader = std::make_unique<Reader>(std::move(recovery->index), std::move(segments));
    reader->damage_ = std::move(recovery->damage);
    reader->held_ = *std::move(held);
    return reader;
  }
}

/// Says of each epoch on which kind of tier most of what it added lies; nothing in a store of one
/// kind.
void Reader::name_tiers(VmInfo& info) const {
  const SegmentCatalog& catalog = segments_->catalog();
  const auto& tiers = catalog.directory().tiers();
  const auto other = [&](const TierDirectory& tier) { return tier.kind != tiers.front().kind; };
  if (std::none_of(tiers.begin(), tiers.end(), other)) return;
  const auto segments = catalog.all();
  std::map<Epoch, std::string_view> names;
  for (const EpochIndexPtr& epoch : index_->epochs(info.id)) {
    std::map<TierKind, std::uint64_t> bytes;
    for (const SegmentUse& use : epoch->uses) {
      const auto found = segments.find(use.segment);
      if (found != segments.end()) bytes[tiers[found->second.tier].kind] += use.live_bytes;
    }
    const bool on_hdd = bytes[TierKind::hdd] > bytes[TierKind::ssd];
    names[epoch->info.epoch] = tier_kind_name(on_hdd ? TierKind::hdd : TierKind::ssd);
  }
  for (EpochInfo& epoch : info.epochs) {
    if (const auto name = names.find(epoch.epoch); name != names.end()) epoch.tier = name->second;
  }
}

Reader::Reads Reader::take_reads() const {
  const SegmentCatalog& catalog = segments_->catalog();
  const auto& tiers = catalog.directory().tiers();
  Reads reads{segments_->take_reads(), {}};
  for (const TierDirectory& tier : tiers) reads.tiers[tier.kind];
  for (const auto& [segment, bytes] : reads.segments) {
    if (const auto facts = catalog.find(segment)) reads.tiers[tiers[facts->tier].kind] += bytes;
  }
  return reads;
}

Result<std::vector<VmInfo>> Reader::vms() const {
  std::vector<VmInfo> infos = index_->vms();
  for (VmInfo& info : infos) name_tiers(info);
  return infos;
}

Result<VmInfo> Reader::vm(const std::string& name) const {
  if (auto info = index_->vm(index_->id_of(name))) {
    name_tiers(*info);
    return *std::move(info);
  }
  std::vector<std::string> names;
  for (const VmInfo& info : index_->vms()) names.push_back(info.name);
  return fail(Errc::not_found, names.empty()
                                   ? fmt::format("no VM '{}': the store holds none yet", name)
                                   : fmt::format("no VM '{}' in the store, which holds: {}", name,
                                                 fmt::join(names, ", ")));
}

Result<std::unique_ptr<EpochImage>> Reader::open(const std::string& vm_name, Epoch epoch) const {
  const VmId id = index_->id_of(vm_name);
  if (!index_->vm(id)) VMSHADOW_TRY(vm(vm_name));
  for (int attempt = 1;; ++attempt) {
    VMSHADOW_ASSIGN(auto chain, index_->chain(vm_name, epoch));
    std::set<SegmentId> ids;
    for (const EpochIndexPtr& part : chain) {
      for (const SegmentUse& use : part->uses) ids.insert(use.segment);
    }
    auto held = segments_->hold({ids.begin(), ids.end()});
    if (!held && held.error().code == Errc::not_found && attempt < kReadAttemptsMax) continue;
    if (!held) {
      return fail(std::move(held).error().with_context(
          fmt::format("epoch {} of VM '{}' cannot be read", epoch.value, vm_name)));
    }
    return JournalImage::open(SegmentFiles::Owner{id, vm_name}, std::move(chain), segments_,
                              *std::move(held));
  }
}

}  // namespace vmshadow::store
