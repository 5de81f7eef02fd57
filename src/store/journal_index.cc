#include "store/journal_index.h"

#include <fmt/format.h>

#include <algorithm>
#include <mutex>

#include "base/assert.h"

namespace vmshadow::store {

EpochInfo make_epoch_info(Epoch epoch, Generation generation, const EpochTally& tally,
                          const format::EpochSummary* summary, WallTime committed_wall) {
  EpochInfo info;
  info.epoch = epoch;
  info.generation = generation;
  info.full = tally.full() || (summary != nullptr && summary->full);
  if (summary != nullptr) info.cut_wall = summary->cut_wall;
  info.committed_wall = committed_wall;
  info.pages = tally.stored_pages();
  info.raw_bytes = tally.stored_pages() * kPageBytes;
  info.stored_bytes = tally.record_bytes() + 2 * format::kRecordPrefixBytes +
                      sizeof(format::EpochEndBytes) + sizeof(format::CommitBytes);
  info.device_bytes = tally.device_bytes();
  return info;
}

void JournalIndex::add_grant(const VmId& id, const std::string& name, Generation generation) {
  const std::unique_lock lock(mutex_);
  Vm& vm = vms_[id];
  if (!name.empty()) vm.name = name;
  vm.generation = std::max(vm.generation, generation);
}

void JournalIndex::add_epoch(const VmId& id, EpochIndexPtr epoch) {
  const std::unique_lock lock(mutex_);
  Vm& vm = vms_[id];
  VMSHADOW_ASSERT(vm.epochs.empty() || vm.epochs.back()->info.epoch < epoch->info.epoch);
  vm.generation = std::max(vm.generation, epoch->info.generation);
  vm.epochs.push_back(std::move(epoch));
}

void JournalIndex::add_lost(const VmId& id, Epoch epoch, const Damage& damage) {
  const std::unique_lock lock(mutex_);
  vms_[id].lost.emplace(epoch, damage);
}

bool JournalIndex::builds_on(const EpochIndex& later, const EpochIndex& earlier) {
  return earlier.info.generation == later.info.generation &&
         earlier.info.epoch.next() == later.info.epoch;
}

VmInfo JournalIndex::info_of(const VmId& id, const Vm& vm) {
  VmInfo info;
  info.name = vm.name.empty() ? id.hex() : vm.name;
  info.id = id;
  info.generation = vm.generation;
  const EpochIndex* before = nullptr;  // null: the next epoch has nothing good to build on
  for (const EpochIndexPtr& epoch : vm.epochs) {
    const bool based = epoch->info.full || (before != nullptr && builds_on(*epoch, *before));
    const bool whole = based && !epoch->base_damage;
    if (whole && !epoch->own_damage) info.epochs.push_back(epoch->info);
    before = whole ? epoch.get() : nullptr;
  }
  return info;
}

std::vector<VmInfo> JournalIndex::vms() const {
  const std::shared_lock lock(mutex_);
  std::vector<VmInfo> infos;
  for (const auto& [id, vm] : vms_) infos.push_back(info_of(id, vm));
  std::sort(infos.begin(), infos.end(),
            [](const VmInfo& a, const VmInfo& b) { return a.name < b.name; });
  return infos;
}

std::optional<VmInfo> JournalIndex::vm(const VmId& id) const {
  const std::shared_lock lock(mutex_);
  const auto found = vms_.find(id);
  if (found == vms_.end()) return std::nullopt;
  return info_of(id, found->second);
}

std::string JournalIndex::name_of(const VmId& id) const {
  const std::shared_lock lock(mutex_);
  const auto found = vms_.find(id);
  return found == vms_.end() || found->second.name.empty() ? id.hex() : found->second.name;
}

Generation JournalIndex::generation_of(const VmId& id) const {
  const std::shared_lock lock(mutex_);
  const auto found = vms_.find(id);
  return found == vms_.end() ? Generation{} : found->second.generation;
}

std::optional<Epoch> JournalIndex::last_epoch(const VmId& id) const {
  const std::shared_lock lock(mutex_);
  const auto found = vms_.find(id);
  if (found == vms_.end()) return std::nullopt;
  std::optional<Epoch> last;
  if (!found->second.epochs.empty()) last = found->second.epochs.back()->info.epoch;
  if (!found->second.lost.empty()) {
    last = std::max(last.value_or(Epoch{}), found->second.lost.rbegin()->first);
  }
  return last;
}

Result<std::vector<EpochIndexPtr>> JournalIndex::chain(const std::string& vm_name,
                                                       Epoch epoch) const {
  const std::shared_lock lock(mutex_);
  const auto found = vms_.find(vm_id(vm_name));
  if (found == vms_.end()) return fail(Errc::not_found, fmt::format("no VM '{}'", vm_name));
  const Vm& vm = found->second;
  if (const auto lost = vm.lost.find(epoch); lost != vm.lost.end()) {
    return fail(lost->second.error());
  }
  auto at = std::find_if(vm.epochs.begin(), vm.epochs.end(),
                         [&](const EpochIndexPtr& e) { return e->info.epoch == epoch; });
  if (at == vm.epochs.end()) {
    const VmInfo info = info_of(found->first, vm);
    return fail(
        Errc::not_found,
        info.epochs.empty()
            ? fmt::format("VM '{}' has no committed epoch yet", vm_name)
            : fmt::format("VM '{}' has no committed epoch {}; it has {} epochs from {} to {}",
                          vm_name, epoch.value, info.epochs.size(), info.epochs.front().epoch.value,
                          info.epochs.back().epoch.value));
  }
  const auto refuse = [&](const Damage& damage) {
    return fail(damage.error().with_context(
        fmt::format("epoch {} of VM '{}' cannot be read", epoch.value, vm_name)));
  };
  if ((*at)->own_damage) return refuse(*(*at)->own_damage);
  std::vector<EpochIndexPtr> chain;
  while (true) {
    chain.push_back(*at);
    if ((*at)->base_damage) return refuse(*(*at)->base_damage);
    if ((*at)->info.full) break;
    if (at == vm.epochs.begin() || !builds_on(**at, **std::prev(at))) {
      const Epoch missing{(*at)->info.epoch.value - 1};
      if (const auto lost = vm.lost.find(missing); lost != vm.lost.end()) {
        return refuse(lost->second);
      }
      return fail(
          Errc::corrupt,
          fmt::format("epoch {} of VM '{}' cannot be read: epoch {} it builds on is missing",
                      epoch.value, vm_name, missing.value));
    }
    --at;
  }
  std::reverse(chain.begin(), chain.end());
  return chain;
}

}  // namespace vmshadow::store
