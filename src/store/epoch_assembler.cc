#include "store/epoch_assembler.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <set>

#include "base/assert.h"

namespace vmshadow::store {

using format::RecordType;

namespace {

/// A vm_state may list more epochs than anyone wants to read about one by one.
constexpr std::size_t kLostEpochsNamedMax = 1024;

VmSettings settings_from(const format::VmState& state) {
  VmSettings settings;
  settings.version = state.version;
  settings.quota_bytes = state.quota_bytes;
  settings.pins.insert(state.pins.begin(), state.pins.end());
  if (state.own_policy) {
    const auto seconds = [](std::uint64_t s) {
      return std::chrono::seconds{static_cast<std::int64_t>(s)};
    };
    settings.policy = RetentionPolicy{seconds(state.window_s), seconds(state.minutely_s),
                                      seconds(state.hourly_s), seconds(state.daily_s)};
  }
  return settings;
}

}  // namespace

void EpochAssembler::add_committed(const VmId& vm, std::shared_ptr<EpochIndex> epoch) {
  const std::pair label{epoch->info.generation, epoch->info.epoch};
  vms_[vm].committed[label] = std::move(epoch);
}

bool EpochAssembler::takes(RecordType recorded) {
  const RecordType type = format::plain_type(recorded);
  return type == RecordType::page_group || type == RecordType::zero_pages ||
         type == RecordType::device_state || type == RecordType::machine ||
         type == RecordType::archived_epoch || type == RecordType::loss;
}

Status EpochAssembler::add_archived(format::JournalPosition at, const format::RecordPrefix& prefix,
                                    ByteSpan front) {
  const format::RecordHead& head = prefix.head;
  Fragment& to = vms_[head.vm].fragments[{head.generation, head.epoch}];
  const bool sealed = format::is_sealed(head.type);
  if (sealed) {
    VMSHADOW_ASSIGN(const format::SealedFront readable, format::decode_sealed_front(front));
    to.key_id = readable.key_id;
  }
  switch (format::plain_type(head.type)) {
    case RecordType::page_group: {
      VMSHADOW_ASSIGN(const auto group, sealed ? format::decode_sealed_group_keys(front)
                                               : format::decode_page_group_keys(front));
      to.pages.add_group(static_cast<std::uint32_t>(to.places.groups.size()), to.records++, group);
      to.places.groups.push_back(RecordPlace::of(at, prefix, group.page_count));
      return {};
    }
    case RecordType::zero_pages: {
      VMSHADOW_ASSIGN(const auto runs, format::decode_zero_pages(front));
      to.pages.add_zero_runs(to.records++, runs);
      to.places.zeros.push_back(RecordPlace::of(at, prefix));
      return {};
    }
    case RecordType::device_state:
      to.device[head.sequence] = RecordPlace::of(at, prefix);
      return {};
    case RecordType::machine: {
      if (!sealed) {
        VMSHADOW_ASSIGN(MachineDescription machine, format::decode_machine(front));
        to.machine = std::make_shared<const MachineDescription>(std::move(machine));
      }
      to.places.machine = RecordPlace::of(at, prefix);
      return {};
    }
    case RecordType::archived_epoch: {
      VMSHADOW_ASSIGN(to.numbers, format::decode_archived_epoch(front));
      to.places.home = at.segment;
      return {};
    }
    case RecordType::loss: {
      VMSHADOW_ASSIGN(const format::Loss loss, format::decode_loss(front));
      const Damage damage{loss.at, loss.bytes, loss.what, {}, head.epoch};
      const RecordPlace place = RecordPlace::of(at, prefix);
      if (loss.kind == format::LossKind::own) {
        to.own_damage = damage;
        to.places.own_loss = place;
      } else {
        to.base_damage = damage;
        to.places.base_loss = place;
      }
      return {};
    }
    default:
      return fail(Errc::corrupt,
                  fmt::format("a record of type {:#05x} does not belong in an archive",
                              static_cast<unsigned>(head.type)));
  }
}

void EpochAssembler::add_archived_damage(const Damage& damage, const format::RecordPrefix& prefix) {
  const format::RecordHead& head = prefix.head;
  Fragment& to = vms_[head.vm].fragments[{head.generation, head.epoch}];
  if (head.type == RecordType::archived_epoch) {
    to.numbers.emplace();  // it was a kept epoch, whatever its numbers
    to.places.home = damage.at.segment;
  }
  if (format::plain_type(head.type) == RecordType::device_state ||
      head.type == RecordType::archived_epoch) {
    to.own_damage = damage;
  } else {
    to.base_damage = damage;
  }
}

void EpochAssembler::add_state(const VmId& id, Generation generation, format::VmState state) {
  Vm& vm = vms_[id];
  vm.generation = std::max(vm.generation, generation);
  if (!vm.state || vm.state->version <= state.version) vm.state = std::move(state);
}

Epoch EpochAssembler::next_epoch(const VmId& id) const {
  const auto vm = vms_.find(id);
  return vm == vms_.end() || !vm->second.state ? Epoch{0} : vm->second.state->next_epoch;
}

void EpochAssembler::add_unknown_loss(const Damage& damage) {
  if (!unknown_loss_) unknown_loss_ = damage;
}

std::shared_ptr<EpochIndex> EpochAssembler::from_fragment(Generation generation, Epoch epoch,
                                                          Fragment& fragment) {
  auto made = std::make_shared<EpochIndex>();
  made->info.epoch = epoch;
  made->info.generation = generation;
  if (const auto& numbers = fragment.numbers) {
    made->info.full = numbers->full;
    made->info.cut_wall = numbers->cut_wall;
    made->info.committed_wall = numbers->committed_wall;
    made->info.pages = numbers->pages;
    made->info.raw_bytes = numbers->pages * kPageBytes;
    made->info.stored_bytes = numbers->stored_bytes;
    made->info.device_bytes = numbers->device_bytes;
  }
  made->machine = fragment.machine;
  made->key_id = fragment.key_id;
  made->pages = fragment.pages.finish();
  made->places = std::move(fragment.places);
  for (const auto& [sequence, place] : fragment.device) made->places.device.push_back(place);
  made->own_damage = fragment.own_damage;
  made->base_damage = fragment.base_damage;
  return made;
}

namespace {

/// The rear of an epoch in the journal, and its front in archives.
std::shared_ptr<EpochIndex> join(const std::shared_ptr<EpochIndex>& front,
                                 const std::shared_ptr<EpochIndex>& rear) {
  const EpochIndexPtr before = front;
  auto joined = merge_dropped({&before, 1}, *rear);
  joined->places.device = front->places.device;
  joined->places.device.insert(joined->places.device.end(), rear->places.device.begin(),
                               rear->places.device.end());
  // Of two, the one that an archive tells of: it stays where the other's bytes may go.
  if (front->own_damage) {
    joined->own_damage = front->own_damage;
    joined->places.own_loss = front->places.own_loss;
  }
  if (front->base_damage) {
    joined->base_damage = front->base_damage;
    joined->places.base_loss = front->places.base_loss;
  }
  joined->info.full = rear->info.full || front->info.full;
  return joined;
}

/// What was archived long ago and is read today must still be all of it.
void check_device_bytes(EpochIndex& epoch) {
  std::uint64_t bytes = 0;
  for (const RecordPlace& place : epoch.places.device) bytes += place.plain_bytes();
  if (bytes == epoch.info.device_bytes || epoch.own_damage || epoch.base_damage) return;
  epoch.own_damage = Damage{
      {epoch.places.home, SegmentOffset{0}},
      0,
      fmt::format("of its {} bytes of device state {} are there", epoch.info.device_bytes, bytes),
      {},
      epoch.info.epoch};
}

}  // namespace

std::optional<Epoch> EpochAssembler::first_kept(const Vm& vm, Epoch from, Epoch before) {
  if (!vm.state) return from < before ? std::optional(from) : std::nullopt;
  const auto& kept = vm.state->kept;
  const auto range = std::lower_bound(kept.begin(), kept.end(), from,
                                      [](const auto& r, Epoch e) { return r.last < e; });
  if (range != kept.end() && std::max(range->first, from) < before) {
    return std::max(range->first, from);
  }
  const Epoch unsaid = std::max(vm.state->next_epoch, from);
  return unsaid < before ? std::optional(unsaid) : std::nullopt;
}

void EpochAssembler::assemble_vm(const VmId& id, Vm& vm, JournalIndex& index,
                                 std::vector<Damage>& damage) {
  if (vm.state) {
    index.add_grant(id, vm.state->vm_name, vm.generation);
    index.set_settings(id, settings_from(*vm.state));
    index.raise_next_epoch(id, vm.state->next_epoch);
  }
  // By generation and epoch: what there is under each label.
  std::map<std::pair<Generation, Epoch>, std::shared_ptr<EpochIndex>> labels =
      std::move(vm.committed);
  std::set<std::pair<Generation, Epoch>> known;  // labels that are committed epochs
  std::set<Generation> in_journal;               // generations of which nothing was archived
  for (const auto& [label, epoch] : labels) {
    known.insert(label);
    if (epoch->places.machine) in_journal.insert(label.first);
  }
  for (auto& [label, fragment] : vm.fragments) {
    if (fragment.numbers) known.insert(label);
    auto front = from_fragment(label.first, label.second, fragment);
    auto& at = labels[label];
    at = at == nullptr ? std::move(front) : join(front, at);
  }
  vm.fragments.clear();

  std::map<Epoch, EpochIndexPtr> kept;
  std::vector<EpochIndexPtr> pending;  // labels of this generation that wait for a kept epoch
  std::optional<Epoch> previous;       // the kept epoch before, of this generation
  Epoch first_label;                   // of this generation
  MachinePtr machine;
  Generation generation;
  for (auto& [label, parts] : labels) {
    if (label.first != generation) {
      generation = label.first;
      first_label = label.second;
      pending.clear();
      previous.reset();
      machine = nullptr;
    }
    const bool keep = known.contains(label) && (!vm.state || vm.state->keeps(label.second));
    if (!keep) {
      pending.push_back(parts);
      continue;
    }
    std::shared_ptr<EpochIndex> epoch = parts;
    if (!pending.empty()) {
      epoch = merge_dropped(pending, *parts);
      pending.clear();
    }
    if (epoch->machine != nullptr) machine = epoch->machine;
    epoch->machine = machine;
    // All that must be there since the kept epoch before, or since the generation's first label.
    const Epoch since = previous ? previous->next() : first_label;
    if (!parts->info.full && !epoch->base_damage) {
      epoch->base_damage = index.lost_between(id, since, label.second);
    }
    if (epoch->info.full || epoch->places.machine) {
      epoch->info.full = true;
      epoch->previous.reset();
    } else {
      const auto missing = first_kept(vm, since, label.second);
      epoch->previous = missing ? missing : previous;
      if (!epoch->previous && label.second.value > 0) {
        epoch->previous = Epoch{label.second.value - 1};
      }
      // Once the epochs have been thinned nothing else would tell that one was missing.
      if (epoch->previous && epoch->previous != previous && !epoch->base_damage) {
        epoch->base_damage =
            Damage{{epoch->places.home, SegmentOffset{0}},
                   0,
                   fmt::format("epoch {} it builds on is missing", epoch->previous->value),
                   {},
                   label.second};
      }
    }
    if (epoch->machine == nullptr && !epoch->places.machine && !previous && !epoch->base_damage) {
      epoch->base_damage = Damage{{epoch->places.home, SegmentOffset{0}},
                                  0,
                                  "the machine record it builds on is missing",
                                  {},
                                  label.second};
    }
    // What is lost may have been any page of a generation that is not all in the journal.
    if (unknown_loss_ && !previous && !in_journal.contains(generation) && !epoch->base_damage) {
      epoch->base_damage = *unknown_loss_;
    }
    check_device_bytes(*epoch);
    for (std::optional<Damage>* of : {&epoch->own_damage, &epoch->base_damage}) {
      if (*of && (*of)->vm_name.empty()) (*of)->vm_name = index.name_of(id);
    }
    if (epoch->places.own_loss) damage.push_back(*epoch->own_damage);
    if (epoch->places.base_loss) damage.push_back(*epoch->base_damage);
    set_uses(*epoch);
    previous = label.second;
    kept[label.second] = std::move(epoch);
  }

  if (vm.state) {
    std::size_t named = 0;
    for (const format::KeptRange& range : vm.state->kept) {
      for (std::uint64_t n = range.first.value;
           n <= range.last.value && named < kLostEpochsNamedMax; ++n) {
        if (kept.contains(Epoch{n})) continue;
        ++named;
        const Damage lost{{},
                          0,
                          fmt::format("epoch {} is to be kept, but nothing of it is left", n),
                          index.name_of(id),
                          Epoch{n}};
        if (index.add_lost(id, Epoch{n}, lost)) damage.push_back(lost);
      }
    }
  }
  for (auto& [number, epoch] : kept) index.add_epoch(id, std::move(epoch));
}

void EpochAssembler::assemble(JournalIndex& index, std::vector<Damage>& damage) {
  for (auto& [id, vm] : vms_) assemble_vm(id, vm, index, damage);
  vms_.clear();
}

}  // namespace vmshadow::store
