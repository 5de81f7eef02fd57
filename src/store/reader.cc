#include "store/reader.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <set>

#include "store/journal_image.h"
#include "store/recovery.h"

namespace vmshadow::store {
namespace {

/// How often reading starts over because segments were archived meanwhile.
constexpr int kAttemptsMax = 20;

}  // namespace

Result<std::unique_ptr<Reader>> Reader::open(const std::string& path) {
  VMSHADOW_ASSIGN(StoreDirectory directory, StoreDirectory::open(path));
  for (int attempt = 1;; ++attempt) {
    // A store that archives meanwhile may take a segment away: then what was read is old.
    auto recovery = recover(directory);
    if (!recovery && recovery.error().code == Errc::not_found && attempt < kAttemptsMax) continue;
    if (!recovery) return fail(std::move(recovery).error());
    auto segments = std::make_shared<const SegmentFiles>(recovery->catalog);
    std::vector<SegmentId> ids;
    for (const auto& [id, facts] : recovery->catalog->all()) ids.push_back(id);
    auto held = segments->hold(ids);
    if (!held && held.error().code == Errc::not_found && attempt < kAttemptsMax) continue;
    if (!held) return fail(std::move(held).error());
    auto reader = std::make_unique<Reader>(std::move(recovery->index), std::move(segments));
    reader->damage_ = std::move(recovery->damage);
    reader->held_ = *std::move(held);
    return reader;
  }
}

Result<std::vector<VmInfo>> Reader::vms() const { return index_->vms(); }

Result<VmInfo> Reader::vm(const std::string& name) const {
  if (auto info = index_->vm(vm_id(name))) return *std::move(info);
  std::vector<std::string> names;
  for (const VmInfo& info : index_->vms()) names.push_back(info.name);
  return fail(Errc::not_found, names.empty()
                                   ? fmt::format("no VM '{}': the store holds none yet", name)
                                   : fmt::format("no VM '{}' in the store, which holds: {}", name,
                                                 fmt::join(names, ", ")));
}

Result<std::unique_ptr<EpochImage>> Reader::open(const std::string& vm_name, Epoch epoch) const {
  VMSHADOW_TRY(vm(vm_name));
  for (int attempt = 1;; ++attempt) {
    VMSHADOW_ASSIGN(auto chain, index_->chain(vm_name, epoch));
    std::set<SegmentId> ids;
    for (const EpochIndexPtr& part : chain) {
      for (const SegmentUse& use : part->uses) ids.insert(use.segment);
    }
    auto held = segments_->hold({ids.begin(), ids.end()});
    if (!held && held.error().code == Errc::not_found && attempt < kAttemptsMax) continue;
    if (!held) {
      return fail(std::move(held).error().with_context(
          fmt::format("epoch {} of VM '{}' cannot be read", epoch.value, vm_name)));
    }
    return std::make_unique<JournalImage>(vm_name, std::move(chain), segments_, *std::move(held));
  }
}

}  // namespace vmshadow::store
