#include "app/replay_scope.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cstdio>
#include <utility>
#include <vector>

namespace vmshadow::app {
namespace {

/// The damage that keeps an epoch from being restored: at or before it, behind the newest that can.
const store::Damage* damage_behind(const store::Reader& reader, const VmInfo& vm,
                                   std::optional<Epoch> wanted) {
  const store::Damage* found = nullptr;
  for (const store::Damage& place : reader.damage()) {
    if (place.vm_name != vm.name || !place.epoch) continue;
    if (wanted && *place.epoch > *wanted) continue;
    if (!wanted && !vm.epochs.empty() && *place.epoch < vm.epochs.back().epoch) continue;
    found = &place;
  }
  return found;
}

}  // namespace

void print_json(const ReportJson& json) {
  std::puts(json.dump(-1, ' ', false, ReportJson::error_handler_t::replace).c_str());
}

Result<VmInfo> choose_vm(const ShadowReader& reader, const std::string& name) {
  if (!name.empty()) return reader.vm(name);
  VMSHADOW_ASSIGN(std::vector<VmInfo> vms, reader.vms());
  if (vms.size() == 1) return std::move(vms.front());
  if (vms.empty()) return fail(Errc::not_found, "the store holds no VM yet");
  std::vector<std::string> names;
  for (const VmInfo& vm : vms) names.push_back(vm.name);
  return fail(Errc::invalid_argument,
              fmt::format("the store holds several VMs, name one of: {}", fmt::join(names, ", ")));
}

Result<EpochInfo> choose_epoch(const store::Reader& reader, const VmInfo& vm,
                               std::optional<Epoch> wanted) {
  if (vm.epochs.empty()) {
    return fail(Errc::not_found, fmt::format("VM '{}' has no committed epoch yet", vm.name));
  }
  if (!wanted) {
    if (const auto* damage = damage_behind(reader, vm, {})) {
      fmt::print(stderr,
                 "shadow-replay: the newest epochs of VM '{}' are lost to damage, the newest that "
                 "can be restored is {}: {}\n",
                 vm.name, vm.epochs.back().epoch.value, damage->text());
    }
    return vm.epochs.back();
  }
  for (const EpochInfo& info : vm.epochs) {
    if (info.epoch == *wanted) return info;
  }
  if (const auto* damage = damage_behind(reader, vm, wanted)) {
    return fail(
        Errc::corrupt,
        fmt::format("epoch {} of VM '{}' needs what is damaged ({}); the newest that can be "
                    "restored is {}",
                    wanted->value, vm.name, damage->text(), vm.epochs.back().epoch.value));
  }
  return fail(
      Errc::not_found,
      fmt::format("VM '{}' has no committed epoch {}; the store holds {} of them between {} "
                  "and {}",
                  vm.name, wanted->value, vm.epochs.size(), vm.epochs.front().epoch.value,
                  vm.epochs.back().epoch.value));
}

}  // namespace vmshadow::app
