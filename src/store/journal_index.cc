#include "store/journal_index.h"

#include <fmt/format.h>

#include <algorithm>
#include <mutex>

#include "base/assert.h"

namespace vmshadow::store {

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
  vm.next_epoch = std::max(vm.next_epoch, epoch->info.epoch.next());
  vm.epochs.push_back(std::move(epoch));
}

bool JournalIndex::add_lost(const VmId& id, Epoch epoch, const Damage& damage) {
  const std::unique_lock lock(mutex_);
  Vm& vm = vms_[id];
  vm.next_epoch = std::max(vm.next_epoch, epoch.next());
  return vm.lost.emplace(epoch, damage).second;
}

std::optional<Damage> JournalIndex::lost_between(const VmId& id, Epoch from, Epoch before) const {
  const std::shared_lock lock(mutex_);
  const auto vm = vms_.find(id);
  if (vm == vms_.end()) return std::nullopt;
  const auto lost = vm->second.lost.lower_bound(from);
  if (lost == vm->second.lost.end() || lost->first >= before) return std::nullopt;
  return lost->second;
}

void JournalIndex::set_settings(const VmId& id, VmSettings settings) {
  const std::unique_lock lock(mutex_);
  vms_[id].settings = std::move(settings);
}

void JournalIndex::replace_epochs(const VmId& id, const std::map<Epoch, EpochIndexPtr>& changes) {
  const std::unique_lock lock(mutex_);
  Vm& vm = vms_[id];
  std::size_t found = 0;
  std::size_t kept = 0;
  for (EpochIndexPtr& epoch : vm.epochs) {
    const auto change = changes.find(epoch->info.epoch);
    if (change != changes.end()) {
      ++found;
      epoch = change->second;
    }
    if (epoch != nullptr) vm.epochs[kept++] = std::move(epoch);
  }
  VMSHADOW_ASSERT(found == changes.size());
  vm.epochs.resize(kept);
}

bool JournalIndex::builds_on(const EpochIndex& later, const EpochIndex& earlier) {
  return earlier.info.generation == later.info.generation && later.previous == earlier.info.epoch;
}

VmInfo JournalIndex::info_of(const VmId& id, const Vm& vm) {
  VmInfo info;
  info.name = vm.name.empty() ? id.hex() : vm.name;
  info.id = id;
  info.generation = vm.generation;
  if (vm.settings.policy) info.retention = policy_text(*vm.settings.policy);
  const EpochIndex* before = nullptr;  // null: the next epoch has nothing good to build on
  for (const EpochIndexPtr& epoch : vm.epochs) {
    const bool based = epoch->info.full || (before != nullptr && builds_on(*epoch, *before));
    const bool whole = based && !epoch->base_damage;
    if (whole && !epoch->own_damage) {
      info.epochs.push_back(epoch->info);
      info.epochs.back().encrypted = epoch->key_id.has_value();
      info.epochs.back().pinned = vm.settings.pins.contains(epoch->info.epoch);
    }
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

VmId JournalIndex::id_of(const std::string& name) const {
  const std::shared_lock lock(mutex_);
  const VmId by_name = vm_id(name);
  if (vms_.contains(by_name)) return by_name;
  for (const auto& [id, vm] : vms_) {
    if (vm.name.empty() && id.hex() == name) return id;
  }
  return by_name;
}

std::string JournalIndex::name_of(const VmId& id) const {
  const std::shared_lock lock(mutex_);
  const auto found = vms_.find(id);
  return found == vms_.end() || found->second.name.empty() ? id.hex() : found->second.name;
}

bool JournalIndex::is_named(const VmId& id) const {
  const std::shared_lock lock(mutex_);
  const auto found = vms_.find(id);
  return found != vms_.end() && !found->second.name.empty();
}

Generation JournalIndex::generation_of(const VmId& id) const {
  const std::shared_lock lock(mutex_);
  const auto found = vms_.find(id);
  return found == vms_.end() ? Generation{} : found->second.generation;
}

VmSettings JournalIndex::settings_of(const VmId& id) const {
  const std::shared_lock lock(mutex_);
  const auto found = vms_.find(id);
  return found == vms_.end() ? VmSettings{} : found->second.settings;
}

std::vector<VmId> JournalIndex::ids() const {
  const std::shared_lock lock(mutex_);
  std::vector<VmId> ids;
  for (const auto& [id, vm] : vms_) ids.push_back(id);
  return ids;
}

std::vector<EpochIndexPtr> JournalIndex::epochs(const VmId& id) const {
  const std::shared_lock lock(mutex_);
  const auto found = vms_.find(id);
  return found == vms_.end() ? std::vector<EpochIndexPtr>{} : found->second.epochs;
}

namespace {

bool same_record(const RecordPlace& a, const RecordPlace& b) {
  return a.position() == b.position();
}

bool has_record(const std::vector<RecordPlace>& list, const RecordPlace& place) {
  return std::any_of(list.begin(), list.end(),
                     [&](const RecordPlace& p) { return same_record(p, place); });
}

}  // namespace

std::vector<Epoch> JournalIndex::epochs_needing(const VmId& id, const RecordPlace& place,
                                                std::uint16_t slots) const {
  std::vector<Epoch> needing;
  std::vector<format::PageKey> pages;  // that are still the newest state
  Generation generation;
  for (const EpochIndexPtr& epoch : epochs(id)) {
    if (epoch->info.generation != generation) {
      generation = epoch->info.generation;
      pages.clear();
    }
    std::erase_if(pages, [&](const format::PageKey& key) {
      return epoch->pages.find(key).kind != PageLookup::Kind::absent;
    });
    const auto& groups = epoch->places.groups;
    const auto group = std::find_if(groups.begin(), groups.end(),
                                    [&](const RecordPlace& p) { return same_record(p, place); });
    if (group != groups.end()) {
      const auto index = static_cast<std::uint32_t>(group - groups.begin());
      for (std::size_t i = 0; i < epoch->pages.data_pages(); ++i) {
        const PageSlot slot = epoch->pages.slot_at(i);
        if (slot.group != index || (slots >> slot.slot & 1) == 0) continue;
        pages.push_back(epoch->pages.key_at(i));
      }
    }
    if (has_record(epoch->places.device, place) || !pages.empty()) {
      needing.push_back(epoch->info.epoch);
    }
  }
  return needing;
}

JournalIndex::Totals JournalIndex::totals() const {
  const std::shared_lock lock(mutex_);
  Totals totals;
  for (const auto& [id, vm] : vms_) {
    for (const EpochIndexPtr& epoch : vm.epochs) {
      ++totals.epochs;
      totals.page_versions += epoch->pages.data_pages();
      totals.memory_bytes += sizeof(EpochIndex) + epoch->pages.memory_bytes() +
                             epoch->uses.capacity() * sizeof(SegmentUse);
      for (const auto* list :
           {&epoch->places.groups, &epoch->places.zeros, &epoch->places.device}) {
        totals.memory_bytes += list->capacity() * sizeof(RecordPlace);
      }
      for (const SegmentUse& use : epoch->uses) totals.live_bytes[use.segment] += use.live_bytes;
    }
  }
  return totals;
}

Epoch JournalIndex::next_epoch(const VmId& id) const {
  const std::shared_lock lock(mutex_);
  const auto found = vms_.find(id);
  return found == vms_.end() ? Epoch{0} : found->second.next_epoch;
}

void JournalIndex::raise_next_epoch(const VmId& id, Epoch next) {
  const std::unique_lock lock(mutex_);
  Vm& vm = vms_[id];
  vm.next_epoch = std::max(vm.next_epoch, next);
}

Result<std::vector<EpochIndexPtr>> JournalIndex::chain(const std::string& vm_name,
                                                       Epoch epoch) const {
  const VmId id = id_of(vm_name);
  const std::shared_lock lock(mutex_);
  const auto found = vms_.find(id);
  if (found == vms_.end()) return fail(Errc::not_found, fmt::format("no VM '{}'", vm_name));
  const Vm& vm = found->second;
  if (const auto lost = vm.lost.find(epoch); lost != vm.lost.end()) {
    return fail(lost->second.error());
  }
  auto at = std::find_if(vm.epochs.begin(), vm.epochs.end(),
                         [&](const EpochIndexPtr& e) { return e->info.epoch == epoch; });
  if (at == vm.epochs.end() && !vm.epochs.empty() && epoch < vm.epochs.back()->info.epoch) {
    const auto after = std::find_if(vm.epochs.begin(), vm.epochs.end(),
                                    [&](const EpochIndexPtr& e) { return e->info.epoch > epoch; });
    return fail(Errc::not_found,
                fmt::format("VM '{}' does not keep epoch {} (any more): the next it keeps is {}; "
                            "`shadow-replay list` shows them all",
                            vm_name, epoch.value, (*after)->info.epoch.value));
  }
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
      const Epoch missing = (*at)->previous.value_or(Epoch{});
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
