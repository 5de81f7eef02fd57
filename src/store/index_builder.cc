#include "store/index_builder.h"

#include <fmt/format.h>

#include <algorithm>

namespace vmshadow::store {

using format::JournalPosition;
using format::RecordType;

namespace {
/// A gap in the epoch numbers names at most this many epochs one by one.
constexpr std::uint64_t kLostEpochsListedMax = 1024;

JournalPosition behind_end(JournalPosition end) {
  constexpr std::uint64_t bytes = format::kRecordPrefixBytes + sizeof(format::EpochEndBytes);
  static_assert(format::alignment_gap(bytes) == 0);
  return {end.segment, SegmentOffset{end.offset.value + bytes}};
}
}  // namespace

Damage& IndexBuilder::note(JournalPosition at, std::uint64_t bytes, std::string what) {
  return damage_.emplace_back(Damage{at, bytes, std::move(what), {}, {}});
}

Damage IndexBuilder::blame(const VmId& id, const Vm& vm, Epoch epoch, JournalPosition at,
                           std::string_view lost) {
  const auto from = damage_.begin() + static_cast<std::ptrdiff_t>(vm.mark);
  auto found = std::find_if(from, damage_.end(),
                            [](const Damage& d) { return d.vm_name.empty() && !d.epoch; });
  if (found == damage_.end()) {
    note(at, 0, std::string(lost));
    found = std::prev(damage_.end());
  }
  found->vm_name = index_.name_of(id);
  found->epoch = epoch;
  return *found;
}

void IndexBuilder::begin_segment(SegmentId segment) {
  if (!first_segment_) first_segment_ = segment;
  segment_before_ = segment_;
  segment_ = segment;
  expected_[segment] = {segment, 0, format::SegmentKind::journal};
}

bool IndexBuilder::front_may_be_archived() const {
  // Segment 1 is the first there ever is; behind unknown damage nothing can be said.
  return first_segment_ && first_segment_->value > 1 && unknown_bytes_ == 0;
}

void IndexBuilder::add(JournalPosition at, const format::RecordPrefix& prefix, ByteSpan front) {
  switch (prefix.head.type) {
    case RecordType::pad:
    case RecordType::mark:
    case RecordType::skeleton:
    case RecordType::seal:
      return;
    case RecordType::grant:
    case RecordType::vm_state:
    case RecordType::segment_list:
    case RecordType::replace:
      add_own(at, prefix, front);
      return;
    case RecordType::commit: {
      const auto commit = format::decode_commit(front);
      if (!commit) {
        add_damaged_body(note(at, 0, commit.error().message), prefix);
      } else {
        add_commit(at, prefix, *commit);
      }
      break;
    }
    case RecordType::epoch_end:
      add_end(at, prefix, front);
      break;
    default:
      add_epoch_record(at, prefix, front);
      break;
  }
  Vm& vm = vms_[prefix.head.vm];
  vm.mark = damage_.size();
  vm.seen = true;
}

bool IndexBuilder::add_unproven(JournalPosition at, const format::RecordPrefix& prefix,
                                ByteSpan front) {
  switch (prefix.head.type) {
    case RecordType::segment_list:
    case RecordType::replace:
      return false;
    case RecordType::vm_state: {
      // Its generation was given out, be it long ago.
      const auto state = format::decode_vm_state(front);
      const bool is_named = state && vm_id(state->vm_name) == prefix.head.vm;
      index_.add_grant(prefix.head.vm, is_named ? state->vm_name : "", prefix.head.generation);
      return false;
    }
    case RecordType::grant:
    case RecordType::pad:
    case RecordType::mark:
    case RecordType::skeleton:
    case RecordType::seal:
      break;
    default:
      if (!may_come(prefix.head)) return true;
      break;
  }
  add(at, prefix, front);
  return true;
}

bool IndexBuilder::may_come(const format::RecordHead& head) const {
  if (const auto vm = vms_.find(head.vm); vm != vms_.end()) {
    if (vm->second.last && head.epoch <= *vm->second.last) return false;
    if (vm->second.open && head.epoch < vm->second.open->epoch) return false;
  }
  return head.epoch >= assembler_.next_epoch(head.vm);
}

/// What the journal says of itself.
void IndexBuilder::add_own(JournalPosition at, const format::RecordPrefix& prefix, ByteSpan body) {
  const VmId& id = prefix.head.vm;
  Status sound;
  if (prefix.head.type == RecordType::grant) {
    const auto grant = format::decode_grant(body);
    if (grant && vm_id(grant->vm_name) == id) {
      index_.add_grant(id, grant->vm_name, prefix.head.generation);
      settle_uncommitted(id, vms_[id], at);
    } else {
      sound = fail(grant ? Error{Errc::corrupt,
                                 fmt::format("a grant to '{}' has another VM's id", grant->vm_name)}
                         : grant.error());
    }
  } else if (prefix.head.type == RecordType::vm_state) {
    auto state = format::decode_vm_state(body);
    if (state && vm_id(state->vm_name) == id) {
      index_.add_grant(id, state->vm_name, prefix.head.generation);
      assembler_.add_state(id, prefix.head.generation, *std::move(state));
    } else {
      sound =
          fail(state ? Error{Errc::corrupt,
                             fmt::format("a vm_state of '{}' has another VM's id", state->vm_name)}
                     : state.error());
    }
  } else if (prefix.head.type == RecordType::segment_list) {
    const auto list = format::decode_segment_list(body);
    if (list) {
      add_segment_list(*list);
    } else {
      sound = fail(list.error());
    }
  } else {
    const auto replace = format::decode_replace(body);
    if (replace) {
      for (const SegmentId removed : replace->removed) expected_.erase(removed);
      removed_.insert(replace->removed.begin(), replace->removed.end());
      for (const format::SegmentEntry& added : replace->added) expected_[added.segment] = added;
    } else {
      sound = fail(replace.error());
    }
  }
  if (!sound) note(at, 0, sound.error().message);
}

void IndexBuilder::add_segment_list(const format::SegmentList& list) {
  expected_.clear();
  for (const format::SegmentEntry& entry : list.segments) {
    expected_[entry.segment] = entry;
    // Journal segments leave from the front: between two that are there, all that existed when the
    // second was begun must be there.
    if (entry.kind == format::SegmentKind::journal && entry.segment > segment_before_ &&
        entry.segment < segment_ && segment_before_.value > 0) {
      add_missing_segment(entry.segment, entry.bytes);
    }
  }
}

IndexBuilder::OpenEpoch& IndexBuilder::open_for(const VmId& id, Vm& vm, JournalPosition at,
                                                const format::RecordHead& head) {
  const bool is_epoch_start = head.type != RecordType::epoch_end && head.sequence == 0;
  if (!vm.open || vm.open->generation != head.generation || vm.open->epoch != head.epoch ||
      is_epoch_start || vm.open->end_seen || head.sequence < vm.open->tally.next_sequence()) {
    settle_uncommitted(id, vm, at);
    const bool same_machine = vm.machine_generation == head.generation;
    vm.open.emplace(head.generation, head.epoch, same_machine ? vm.machine : nullptr);
  }
  OpenEpoch& open = *vm.open;
  if (head.sequence > 0 && !vm.seen && front_may_be_archived()) {
    open.tally.start_partial(head.sequence);
  } else if (head.sequence > open.tally.next_sequence()) {
    open.base_damage =
        blame(id, vm, head.epoch, at,
              fmt::format("records {} to {} of the epoch are missing before this one",
                          open.tally.next_sequence(), head.sequence - 1));
    open.tally.skip_to(head.sequence);
  }
  return open;
}

void IndexBuilder::add_epoch_record(JournalPosition at, const format::RecordPrefix& prefix,
                                    ByteSpan front) {
  OpenEpoch& open = open_for(prefix.head.vm, vms_[prefix.head.vm], at, prefix.head);
  const auto placing = open.tally.add(prefix, front);
  if (!placing) {
    Damage& damage =
        note(at, format::kRecordPrefixBytes + prefix.body_bytes, placing.error().message);
    damage.vm_name = index_.name_of(prefix.head.vm);
    damage.epoch = prefix.head.epoch;
    open.base_damage = damage;
    open.tally.add_damaged(prefix);
    return;
  }
  open.places.add(*placing, RecordPlace::of(at, prefix, placing->pages));
}

void IndexBuilder::add_end(JournalPosition at, const format::RecordPrefix& prefix, ByteSpan body) {
  OpenEpoch& open = open_for(prefix.head.vm, vms_[prefix.head.vm], at, prefix.head);
  open.end_seen = true;
  open.commit_at = behind_end(at);
  auto summary = format::decode_epoch_end(body);
  Status sound;
  if (!summary) {
    sound = fail(std::move(summary).error());
  } else {
    open.end = *summary;
    // Where damage is known already, the counts cannot match.
    if (!open.own_damage && !open.base_damage) sound = open.tally.check(prefix, *summary);
  }
  if (!sound) {
    Damage& damage = note(at, 0, sound.error().message);
    damage.vm_name = index_.name_of(prefix.head.vm);
    damage.epoch = prefix.head.epoch;
    open.base_damage = damage;
  }
}

void IndexBuilder::add_commit(JournalPosition at, const format::RecordPrefix& prefix,
                              const format::Commit& commit) {
  const VmId& id = prefix.head.vm;
  Vm& vm = vms_[id];
  if (!vm.open || vm.open->generation != prefix.head.generation ||
      vm.open->epoch != prefix.head.epoch) {
    vm.open.emplace(prefix.head.generation, prefix.head.epoch, nullptr);
    vm.open->base_damage = blame(id, vm, prefix.head.epoch, at,
                                 "the records of the epoch are missing before its commit");
  }
  OpenEpoch& open = *vm.open;
  if (!open.end_seen) {
    open.own_damage =
        blame(id, vm, prefix.head.epoch, at, "the epoch_end is missing before the commit");
  }
  if (!open.tally.partial() && open.tally.chain() != commit.chain && !open.base_damage) {
    open.base_damage =
        blame(id, vm, prefix.head.epoch, at, "the commit is not that of the records before it");
  }
  commit_open(id, vm, at, commit.committed_wall);
}

void IndexBuilder::commit_open(const VmId& id, Vm& vm, JournalPosition at,
                               WallTime committed_wall) {
  OpenEpoch open = std::move(*vm.open);
  vm.open.reset();
  auto epoch = std::make_shared<EpochIndex>();
  epoch->info = make_epoch_info(open.epoch, open.generation, open.tally,
                                open.end ? &*open.end : nullptr, committed_wall);
  if (vm.last && open.epoch <= *vm.last) {
    Damage& damage = note(at, 0,
                          fmt::format("epoch {} follows epoch {}, but the numbers rise",
                                      open.epoch.value, vm.last->value));
    damage.vm_name = index_.name_of(id);
    damage.epoch = open.epoch;
    return;
  }
  for (std::uint64_t lost = vm.last ? vm.last->value + 1 : open.epoch.value;
       lost < open.epoch.value && open.epoch.value - lost <= kLostEpochsListedMax; ++lost) {
    index_.add_lost(id, Epoch{lost},
                    blame(id, vm, Epoch{lost}, at,
                          fmt::format("epoch {} is missing before this commit", lost)));
  }
  vm.last = open.epoch;
  epoch->machine = open.tally.machine();
  epoch->key_id = open.tally.key_id();
  epoch->pages = open.tally.take_pages();
  epoch->places = std::move(open.places);
  epoch->places.home = at.segment;
  epoch->own_damage = std::move(open.own_damage);
  epoch->base_damage = std::move(open.base_damage);
  if (epoch->info.full) {
    vm.machine = epoch->machine;
    vm.machine_generation = open.generation;
  }
  assembler_.add_committed(id, std::move(epoch));
}

void IndexBuilder::settle_uncommitted(const VmId& id, Vm& vm, JournalPosition at) {
  if (vm.open && vm.open->end_seen) {
    // An epoch_end without a commit is what a torn tail leaves; only damage in the very place of
    // the commit (they are written as one) says that there was one.
    const JournalPosition commit_at = vm.open->commit_at;
    const auto damage = std::find_if(damage_.begin(), damage_.end(), [&](const Damage& d) {
      return d.at == commit_at && d.vm_name.empty();
    });
    if (damage != damage_.end()) {
      damage->vm_name = index_.name_of(id);
      damage->epoch = vm.open->epoch;
      vm.open->own_damage = *damage;
      commit_open(id, vm, at, WallTime{});
    }
  }
  vm.open.reset();
}

void IndexBuilder::add_bad(SegmentId segment, const BadRegion& region) {
  const JournalPosition at{segment, SegmentOffset{region.offset}};
  Damage& damage = note(at, region.end - region.offset, region.what);
  if (!region.prefix) {
    unknown_bytes_ += region.end - region.offset;
    return;
  }
  damage.vm_name = index_.name_of(region.prefix->head.vm);
  const RecordType type = region.prefix->head.type;
  switch (type) {
    case RecordType::grant:
    case RecordType::vm_state:
      index_.add_grant(region.prefix->head.vm, "", region.prefix->head.generation);
      return;
    case RecordType::pad:
    case RecordType::mark:
    case RecordType::segment_list:
    case RecordType::replace:
    case RecordType::skeleton:
    case RecordType::seal:
      damage.vm_name.clear();
      return;
    default:
      break;
  }
  damage.epoch = region.prefix->head.epoch;
  add_damaged_body(damage, *region.prefix);
  vms_[region.prefix->head.vm].mark = damage_.size();
  vms_[region.prefix->head.vm].seen = true;
}

/// Damage to a body alone: the prefix still says whose it is, where it belongs, and its link of the
/// chain.
void IndexBuilder::add_damaged_body(const Damage& noted, const format::RecordPrefix& prefix) {
  const Damage damage = noted;  // what follows may note more
  const VmId& id = prefix.head.vm;
  Vm& vm = vms_[id];
  if (prefix.head.type == RecordType::commit) {
    if (!vm.open || vm.open->epoch != prefix.head.epoch ||
        vm.open->generation != prefix.head.generation) {
      vm.open.emplace(prefix.head.generation, prefix.head.epoch, nullptr);
      vm.open->base_damage = damage;
    }
    vm.open->own_damage = damage;
    commit_open(id, vm, damage.at, WallTime{});
    return;
  }
  OpenEpoch& open = open_for(id, vm, damage.at, prefix.head);
  if (prefix.head.type == RecordType::epoch_end) {
    open.end_seen = true;
    open.commit_at = behind_end(damage.at);
    open.own_damage = damage;
    return;
  }
  if (format::plain_type(prefix.head.type) == RecordType::device_state) {
    open.own_damage = damage;
  } else {
    open.base_damage = damage;
  }
  open.tally.add_damaged(prefix);
}

void IndexBuilder::add_missing_segment(SegmentId segment, std::uint64_t bytes_guess) {
  note({segment, SegmentOffset{0}}, 0, "the segment's file is missing");
  unknown_bytes_ += bytes_guess;
}

void IndexBuilder::finish() {
  for (auto& [id, vm] : vms_) settle_uncommitted(id, vm, {});
}

}  // namespace vmshadow::store
