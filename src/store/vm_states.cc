#include "store/vm_states.h"

namespace vmshadow::store {

void VmStates::begin_drop(const VmId& vm, const std::vector<Epoch>& epochs) {
  const std::lock_guard lock(mutex_);
  dropping_[vm] = {epochs.begin(), epochs.end()};
}

void VmStates::end_drop(const VmId& vm) {
  const std::lock_guard lock(mutex_);
  dropping_.erase(vm);
}

RetentionPolicy VmStates::policy_of(const VmId& vm) const {
  return index_.settings_of(vm).policy.value_or(store_policy_);
}

std::vector<VmId> VmStates::vms() const {
  std::vector<VmId> vms = index_.ids();
  std::erase_if(vms, [&](const VmId& vm) { return !index_.is_named(vm); });
  return vms;
}

std::vector<std::byte> VmStates::records(const std::vector<VmId>& vms) const {
  std::vector<std::byte> out;
  for (const VmId& vm : vms) {
    std::vector<std::byte> body;
    format::append_body(body, make(vm, {}));
    format::append_record(out, {format::RecordType::vm_state, 0, vm, index_.generation_of(vm), {}},
                          body);
    out.resize(out.size() + format::alignment_gap(out.size()));
  }
  return out;
}

format::VmState VmStates::make(const VmId& vm, const format::JournalPosition& durable) const {
  const std::lock_guard lock(mutex_);
  const VmSettings settings = index_.settings_of(vm);
  const RetentionPolicy policy = settings.policy.value_or(store_policy_);
  const auto whole_seconds = [](std::chrono::seconds s) {
    return static_cast<std::uint64_t>(s.count());
  };
  format::VmState state;
  state.version = settings.version;
  state.vm_name = index_.name_of(vm);
  state.window_s = whole_seconds(policy.window);
  state.minutely_s = whole_seconds(policy.minutely);
  state.hourly_s = whole_seconds(policy.hourly);
  state.daily_s = whole_seconds(policy.daily);
  state.own_policy = settings.policy.has_value();
  state.quota_bytes = settings.quota_bytes;
  state.pins.assign(settings.pins.begin(), settings.pins.end());
  state.durable = durable;

  state.next_epoch = index_.next_epoch(vm);
  const auto dropping = dropping_.find(vm);
  for (const EpochIndexPtr& epoch : index_.epochs(vm)) {
    const Epoch number = epoch->info.epoch;
    if (number >= state.next_epoch) break;  // committed just now
    if (dropping != dropping_.end() && dropping->second.contains(number)) continue;
    if (!state.kept.empty() && state.kept.back().last.next() == number) {
      state.kept.back().last = number;
    } else {
      state.kept.push_back({number, number});
    }
  }
  return state;
}

}  // namespace vmshadow::store
