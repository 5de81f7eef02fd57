#include "store/epoch_mover.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <spdlog/spdlog.h>

#include <algorithm>

#include "base/assert.h"
#include "crypt/sealed_record.h"
#include "format/sealed_record.h"
#include "store/damaged_group.h"

namespace vmshadow::store {

using format::RecordType;

namespace {

/// Runs in one zero_pages record.
constexpr std::size_t kZeroRunsPerRecord = 32 * 1024;

}  // namespace

Result<EpochIndexPtr> EpochMover::move(const VmId& vm, const std::string& name,
                                       const EpochIndexPtr& epoch, const PageHeat& heat) {
  owner_ = {vm, name};
  old_ = epoch;
  fresh_ = std::make_shared<EpochIndex>();
  fresh_->info = epoch->info;
  fresh_->previous = epoch->previous;
  fresh_->machine = epoch->machine;
  fresh_->key_id = epoch->key_id;
  fresh_->places = epoch->places;
  fresh_->places.groups.clear();
  fresh_->own_damage = epoch->own_damage;
  fresh_->base_damage = epoch->base_damage;
  new_groups_.clear();
  moves_.clear();

  VMSHADOW_TRY(move_machine());
  VMSHADOW_TRY(move_groups(live_pages(heat)));
  VMSHADOW_TRY(move_zeros());
  VMSHADOW_TRY(move_device());
  VMSHADOW_TRY(move_numbers());
  VMSHADOW_TRY(move_losses());

  std::sort(moves_.begin(), moves_.end(),
            [](const auto& a, const auto& b) { return a.page < b.page; });
  PlacedTable placed = relocate_pages({&old_->pages, old_->places.groups}, moves_, new_groups_);
  fresh_->pages = std::move(placed.pages);
  fresh_->places.groups = std::move(placed.groups);
  set_uses(*fresh_);
  return fresh_;
}

std::vector<EpochMover::LivePage> EpochMover::live_pages(const PageHeat& heat) const {
  const PageTable& table = old_->pages;
  const std::vector<RecordPlace>& groups = old_->places.groups;
  std::vector<bool> leaving(groups.size());
  for (std::size_t i = 0; i < groups.size(); ++i) leaving[i] = leaves(groups[i]);
  std::vector<LivePage> live;
  for (std::size_t i = 0; i < table.data_pages(); ++i) {
    const PageSlot slot = table.slot_at(i);
    if (!leaving[slot.group]) continue;
    const format::PageKey key = table.key_at(i);
    live.push_back({slot.group, slot.slot, key, placement_.pages(heat.versions(key))});
  }
  std::sort(live.begin(), live.end(), [&](const LivePage& a, const LivePage& b) {
    if (a.group == b.group) return a.slot < b.slot;
    return groups[a.group].position() < groups[b.group].position();
  });
  return live;
}

Status EpochMover::move_groups(const std::vector<LivePage>& live) {
  for (std::size_t i = 0; i < live.size();) {
    std::size_t end = i;
    while (end < live.size() && live[end].group == live[i].group) ++end;
    VMSHADOW_TRY(move_group(std::span(live).subspan(i, end - i)));
    i = end;
  }
  for (auto& [to, pages] : repacked_) VMSHADOW_TRY(flush(to, pages));
  return {};
}

Status EpochMover::move_group(std::span<const LivePage> live) {
  const RecordPlace& place = old_->places.groups[live.front().group];
  VMSHADOW_TRY(pace(place.record_bytes()));
  if (auto read = ground_.segments.read(place, RecordType::page_group, owner_, record_); !read) {
    return is_lost(place, read.error()) ? move_damaged(live, read.error()) : read;
  }
  const auto group = place.sealed() ? format::decode_sealed_group_keys(record_.body())
                                    : format::decode_page_group(record_.body());
  if (!group) return move_damaged(live, group.error());
  for (const LivePage& page : live) {
    if (page.slot >= group->page_count || group->keys[page.slot] != page.key) {
      return move_damaged(live, {Errc::corrupt, "the group does not hold the page"});
    }
  }
  const bool one_tier = std::all_of(live.begin(), live.end(),
                                    [&](const LivePage& p) { return p.tier == live[0].tier; });
  if (live.size() == group->page_count && one_tier) {
    return copy_group(live, live[0].tier, group->page_count);
  }
  if (place.sealed()) return move_sealed_part(live);
  if (group->codec == format::Codec::lost) return move_lost(live, group->payload);
  return repack(live, *group, std::nullopt);
}

/// Byte for byte, as it is in record_.
Status EpochMover::copy_group(std::span<const LivePage> live, TierKind tier,
                              std::size_t page_count) {
  VMSHADOW_TRY(pace(record_.bytes.size()));
  VMSHADOW_ASSIGN(const RecordPlace to, archives_.writer(tier).append(record_.bytes, page_count));
  new_groups_.push_back(to);
  for (const LivePage& page : live) moved(page.key, page.slot);
  return {};
}

/// Some pages of a sealed group.
Status EpochMover::move_sealed_part(std::span<const LivePage> live) {
  if (without_key_.contains(owner_.id)) return copy_unopened(live);
  const RecordPlace& place = old_->places.groups[live.front().group];
  const auto body =
      ground_.segments.plain_body(place, owner_, record_.prefix, record_.body(), opened_);
  if (!body && body.error().code == Errc::corrupt) return move_damaged(live, body.error());
  if (!body) {
    spdlog::warn("archives take more room than they need: {}", body.error().message);
    without_key_.insert(owner_.id);
    return copy_unopened(live);
  }
  const auto opened = format::decode_page_group(*body);
  if (!opened) return move_damaged(live, opened.error());
  VMSHADOW_ASSIGN(const auto sealed, format::decode_sealed_front(record_.body()));
  return repack(live, *opened, sealed.key_id);
}

/// A sealed group without its key: the pages that no longer count are marked, or a page might stand
/// twice under one label.
Status EpochMover::copy_unopened(std::span<const LivePage> live) {
  VMSHADOW_ASSIGN(const auto group, format::decode_sealed_group_keys(record_.body()));
  unsigned dead = (1u << group.page_count) - 1;
  for (const LivePage& page : live) dead &= ~(1u << page.slot);
  format::set_dead_pages(record_.bytes, static_cast<std::uint16_t>(dead));
  const bool any_ssd = std::any_of(live.begin(), live.end(),
                                   [](const LivePage& p) { return p.tier == TierKind::ssd; });
  VMSHADOW_TRY(copy_group(live, any_ssd ? TierKind::ssd : TierKind::hdd, group.page_count));
  report_.unopened.insert(new_groups_.back().segment());
  return {};
}

Status EpochMover::repack(std::span<const LivePage> live, const format::PageGroup& group,
                          const std::optional<format::KeyId>& key_id) {
  const MutableByteSpan pages = MutableByteSpan(raw_).first(group.page_count * kPageBytes);
  if (const auto decoded = delta::decode_pages(group, pages); !decoded) {
    return move_damaged(live, decoded.error());
  }
  for (const LivePage& page : live) {
    VMSHADOW_TRY(repack_page({page.tier, key_id}, page.key, pages.data() + page.slot * kPageBytes));
  }
  return {};
}

Status EpochMover::repack_page(const Destination& destination, format::PageKey key,
                               const std::byte* page) {
  Repacked& to = repacked_[destination];
  to.keys.push_back(key);
  format::append_bytes(to.bytes, {page, kPageBytes});
  return to.keys.size() == format::kGroupPagesMax ? flush(destination, to) : Status();
}

/// A group that is damaged, as it was read into record_: saves what can be saved.
Status EpochMover::move_damaged(std::span<const LivePage> live, const Error& error) {
  const RecordPlace& place = old_->places.groups[live.front().group];
  const DamagedGroup damaged(place, owner_.id,
                             error.code == Errc::corrupt ? record_.bytes : ByteSpan());
  std::vector<LivePage> lost;
  std::vector<std::byte> copy(kPageBytes);
  std::set<Epoch> from;
  std::uint64_t repaired = 0;
  for (const LivePage& page : live) {
    const Destination to{page.tier, std::nullopt};
    if (const std::byte* const whole = damaged.page(page.slot, page.key)) {
      VMSHADOW_TRY(repack_page(to, page.key, whole));
      continue;
    }
    const auto checksum = damaged.claimed_checksum(page.slot, page.key);
    const auto found = checksum ? copies_.find(owner_, page.key, *checksum, place, copy)
                                : std::optional<PageCopies::Copy>();
    if (!found) {
      lost.push_back(page);
      continue;
    }
    VMSHADOW_TRY(repack_page(to, page.key, copy.data()));
    from.insert(found->epoch);
    ++repaired;
  }
  report_.repaired_pages += repaired;
  report_.salvaged_pages += live.size() - lost.size() - repaired;
  report_.lost_pages += lost.size();
  if (lost.size() < live.size()) {
    std::vector<std::uint64_t> epochs;
    for (const Epoch epoch : from) epochs.push_back(epoch.value);
    spdlog::warn(
        "{}: of {} pages that are needed {} were whole, repaired {} pages{}, {} are lost",
        damage_at(place, error).text(), live.size(), live.size() - lost.size() - repaired, repaired,
        from.empty() ? "" : fmt::format(" from epoch {}", fmt::join(epochs, ", ")), lost.size());
  }
  return lost.empty() ? Status() : lose(lost, error);
}

/// The pages as one record: sealed anew, with a nonce of its own, if they were sealed.
Result<std::vector<std::byte>> EpochMover::group_record(const Destination& to,
                                                        const Repacked& from) {
  std::vector<std::byte> body;
  encoder_.append_body(body, from.keys, from.bytes.data());
  std::vector<std::byte> record;
  if (!to.key_id) {
    format::append_record(record, head(RecordType::page_group), body);
    return record;
  }
  VMSHADOW_ASSIGN(const auto keys, ground_.segments.keys().keys_of(owner_.id, owner_.name));
  const crypt::VmKey* const key = crypt::find_key(*keys, *to.key_id);
  VMSHADOW_ASSERT(key != nullptr);  // the pages were opened with it just before
  VMSHADOW_ASSIGN(const crypt::Nonce nonce, crypt::random_nonce());
  crypt::seal_record(*key, nonce, head(RecordType::page_group), body, record);
  return record;
}

Status EpochMover::flush(const Destination& destination, Repacked& from) {
  if (from.keys.empty()) return {};
  VMSHADOW_ASSIGN(const std::vector<std::byte> record, group_record(destination, from));
  VMSHADOW_TRY(pace(record.size()));
  VMSHADOW_ASSIGN(const RecordPlace to,
                  archives_.writer(destination.tier).append(record, from.keys.size()));
  new_groups_.push_back(to);
  for (std::uint32_t slot = 0; slot < from.keys.size(); ++slot) moved(from.keys[slot], slot);
  from.keys.clear();
  from.bytes.clear();
  return {};
}

/// The pages are known by name alone from now on; whoever reads them is told why.
Status EpochMover::lose(std::span<const LivePage> live, const Error& error) {
  note(old_->places.groups[live.front().group], error);
  return move_lost(live, std::as_bytes(std::span(error.message)));
}

Status EpochMover::move_lost(std::span<const LivePage> live, ByteSpan text) {
  std::vector<format::PageKey> keys;
  for (const LivePage& page : live) keys.push_back(page.key);
  const std::vector<std::uint64_t> checksums(keys.size());
  std::vector<std::byte> body;
  format::append_page_group_body(body, format::Codec::lost, keys, checksums,
                                 text.first(std::min(text.size(), format::kLostTextBytesMax)));
  VMSHADOW_ASSIGN(
      const RecordPlace to,
      archives_.writer(placement_.others).append(head(RecordType::page_group), body, keys.size()));
  new_groups_.push_back(to);
  for (std::uint32_t slot = 0; slot < keys.size(); ++slot) moved(keys[slot], slot);
  return {};
}

Status EpochMover::move_zeros() {
  auto& zeros = fresh_->places.zeros;
  if (std::none_of(zeros.begin(), zeros.end(), [&](const auto& p) { return leaves(p); })) return {};
  zeros.clear();
  const std::vector<format::ZeroRun> runs = old_->pages.zero_run_list();
  for (std::span<const format::ZeroRun> rest(runs); !rest.empty();) {
    const auto some = rest.first(std::min(rest.size(), kZeroRunsPerRecord));
    std::vector<std::byte> body;
    format::append_zero_pages_body(body, some);
    VMSHADOW_ASSIGN(const RecordPlace to, append_other(head(RecordType::zero_pages), body));
    zeros.push_back(to);
    rest = rest.subspan(some.size());
  }
  return {};
}

Status EpochMover::move_device() {
  std::vector<RecordPlace> kept;
  for (const RecordPlace& place : fresh_->places.device) {
    if (!leaves(place)) {
      kept.push_back(place);
      continue;
    }
    VMSHADOW_TRY(pace(place.record_bytes()));
    auto read = ground_.segments.read(place, RecordType::device_state, owner_, record_);
    if (!read && !is_lost(place, read.error())) return read;
    if (!read) {
      note(place, read.error());
      fresh_->own_damage = report_.damage.back();
      continue;
    }
    VMSHADOW_ASSIGN(const RecordPlace to,
                    archives_.writer(placement_.others).append(record_.bytes));
    kept.push_back(to);
  }
  fresh_->places.device = std::move(kept);
  return {};
}

Status EpochMover::move_machine() {
  auto& machine = fresh_->places.machine;
  if (!machine || !leaves(*machine)) return {};
  auto read = ground_.segments.read(*machine, RecordType::machine, owner_, record_);
  if (!read && !is_lost(*machine, read.error())) return read;
  if (!read && fresh_->machine == nullptr) {
    if (!fresh_->base_damage) {
      note(*machine, read.error());
      fresh_->base_damage = report_.damage.back();
    }
    machine.reset();
    return {};
  }
  if (read) {
    VMSHADOW_ASSIGN(machine, archives_.writer(placement_.others).append(record_.bytes));
    return {};
  }
  // It is still in memory as it was read when it was good.
  note(*machine, read.error());
  std::vector<std::byte> body;
  format::append_machine_body(body, *fresh_->machine);
  format::RecordHead to = head(RecordType::machine);
  to.epoch = machine->epoch();
  VMSHADOW_ASSIGN(machine, append_other(to, body));
  return {};
}

Status EpochMover::move_numbers() {
  if (!sources_.contains(fresh_->places.home)) return {};
  const EpochInfo& info = old_->info;
  format::ArchivedEpoch numbers;
  numbers.committed_wall = info.committed_wall;
  numbers.cut_wall = info.cut_wall;
  numbers.pages = info.pages;
  numbers.stored_bytes = info.stored_bytes;
  numbers.device_bytes = info.device_bytes;
  numbers.full = info.full;
  std::vector<std::byte> body;
  format::append_body(body, numbers);
  VMSHADOW_ASSIGN(const RecordPlace to, append_other(head(RecordType::archived_epoch), body));
  fresh_->places.home = to.segment();
  return {};
}

/// Damage that is known goes with the epoch even if what shows it stays where it is: the next run
/// may take that.
Status EpochMover::move_losses() {
  VMSHADOW_TRY(move_loss(format::LossKind::own, fresh_->own_damage, fresh_->places.own_loss));
  return move_loss(format::LossKind::base, fresh_->base_damage, fresh_->places.base_loss);
}

Status EpochMover::move_loss(format::LossKind kind, const std::optional<Damage>& damage,
                             std::optional<RecordPlace>& place) {
  if (!damage || (place && !leaves(*place))) return {};
  std::vector<std::byte> body;
  format::append_body(body, format::Loss{damage->at, damage->bytes, kind,
                                         damage->what.substr(0, format::kLostTextBytesMax)});
  VMSHADOW_ASSIGN(place, append_other(head(RecordType::loss), body));
  return {};
}

}  // namespace vmshadow::store
