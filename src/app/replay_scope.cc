#include "app/replay_scope.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdio>
#include <utility>
#include <vector>

#include "app/control_socket.h"
#include "app/progress_bar.h"
#include "app/store_control.h"

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

store::Reader::Reads settle_reads(const ReplayScope& scope, const store::Reader& reader) {
  store::Reader::Reads reads = reader.take_reads();
  std::vector<std::pair<SegmentId, std::uint64_t>> most(reads.segments.begin(),
                                                        reads.segments.end());
  std::sort(most.begin(), most.end(),
            [](const auto& a, const auto& b) { return a.second > b.second; });
  NoteReadsRequest request;
  for (const auto& [segment, bytes] : most) {
    if (request.segments.size() == kNoteReadsMax) break;
    request.segments[segment.value] = bytes;
  }
  // Only a hint: a store that does not take it is none the worse.
  (void)call_store(scope.store, request);
  return reads;
}

ReportJson reads_json(const store::Reader::Reads& reads) {
  ReportJson json = ReportJson::object();
  for (const auto& [kind, bytes] : reads.tiers) json[store::tier_kind_name(kind)] = bytes;
  return json;
}

std::string reads_text(const store::Reader::Reads& reads) {
  std::vector<std::string> parts;
  for (const auto& [kind, bytes] : reads.tiers) {
    parts.push_back(fmt::format("{} from {}", mb_text(bytes), store::tier_kind_name(kind)));
  }
  return fmt::format("{}", fmt::join(parts, ", "));
}

}  // namespace vmshadow::app
