#include "store/archiver.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <array>
#include <map>
#include <memory>
#include <optional>
#include <set>

#include "base/assert.h"
#include "delta/page_group_codec.h"
#include "store/archive_writer.h"
#include "store/page_heat.h"

namespace vmshadow::store {

using format::RecordType;

namespace {

/// Runs in one zero_pages record.
constexpr std::size_t kZeroRunsPerRecord = 32 * 1024;

/// The archives of one run: a writer for each kind of tier, made when it is needed.
class Archives {
 public:
  Archives(Archiver::Ground& ground, const std::vector<SegmentId>& sources,
           const ArchiveOptions& options, std::uint64_t expected_bytes)
      : ground_(ground), sources_(sources), options_(options), expected_bytes_(expected_bytes) {}

  ArchiveWriter& writer(TierKind kind) {
    auto& made = kind == TierKind::ssd ? ssd_ : hdd_;
    if (made == nullptr) {
      made = std::make_unique<ArchiveWriter>(
          ground_.catalog, ground_.files, ground_.clock,
          ArchiveWriter::Plan{kind, options_.segment_bytes, expected_bytes_, sources_,
                              ground_.states.records()});
    }
    return *made;
  }
  Status finish() {
    for (ArchiveWriter* made : {ssd_.get(), hdd_.get()}) {
      if (made != nullptr) VMSHADOW_TRY(made->finish());
    }
    return {};
  }
  void discard() {
    for (ArchiveWriter* made : {ssd_.get(), hdd_.get()}) {
      if (made != nullptr) made->discard();
    }
  }
  [[nodiscard]] std::vector<ArchiveWriter::Made> segments() const {
    std::vector<ArchiveWriter::Made> all;
    for (const ArchiveWriter* made : {ssd_.get(), hdd_.get()}) {
      if (made == nullptr) continue;
      all.insert(all.end(), made->segments().begin(), made->segments().end());
    }
    std::sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.id < b.id; });
    return all;
  }
  [[nodiscard]] std::uint64_t written_bytes() const {
    std::uint64_t bytes = 0;
    for (const ArchiveWriter* made : {ssd_.get(), hdd_.get()}) {
      if (made != nullptr) bytes += made->written_bytes();
    }
    return bytes;
  }

 private:
  Archiver::Ground& ground_;
  const std::vector<SegmentId>& sources_;
  const ArchiveOptions& options_;
  const std::uint64_t expected_bytes_;
  std::unique_ptr<ArchiveWriter> ssd_, hdd_;
};

/// Moves what one epoch has in the sources.
class EpochMover {
 public:
  EpochMover(Archiver::Ground& ground, const std::set<SegmentId>& sources,
             const ArchiveOptions& options, const Archiver::Placement& placement,
             Archives& archives, std::vector<Damage>& damage)
      : ground_(ground),
        sources_(sources),
        options_(options),
        placement_(placement),
        archives_(archives),
        damage_(damage),
        raw_(format::kGroupPagesMax * kPageBytes) {}

  Result<EpochIndexPtr> move(const VmId& vm, const std::string& name, const EpochIndexPtr& epoch,
                             const PageHeat& heat);

 private:
  /// Pages that wait to become a group of their own.
  struct Repacked {
    std::vector<format::PageKey> keys;
    std::vector<std::byte> bytes;
  };
  struct LivePage {
    std::uint32_t group;
    std::uint32_t slot;
    format::PageKey key;
    TierKind tier;
  };
  [[nodiscard]] bool leaves(const RecordPlace& place) const {
    return sources_.contains(place.segment());
  }
  /// Whether a record that could not be read is to be given up. Not while the disk as a whole does
  /// not answer: that is no damage to the record.
  [[nodiscard]] bool is_lost(const RecordPlace& place, const Error& error) const {
    if (error.code == Errc::corrupt) return true;
    if (error.code != Errc::io || !options_.lose_unreadable) return false;
    std::array<std::byte, format::kSegmentHeadBytes> head;
    return ground_.segments.read_raw(place.segment(), {}, head).has_value();
  }
  /// Appends a record to the archive for what is not pages.
  Result<RecordPlace> append_other(const format::RecordHead& head, ByteSpan body) {
    return archives_.writer(placement_.others).append(head, body);
  }
  [[nodiscard]] std::vector<LivePage> live_pages(const PageHeat& heat) const;
  Status move_groups(const std::vector<LivePage>& live);
  Status move_group(std::span<const LivePage> live);
  Status repack(std::span<const LivePage> live, const format::PageGroup& group);
  Status flush(TierKind tier);
  Status lose(std::span<const LivePage> live, const Error& error);
  Status move_lost(std::span<const LivePage> live, ByteSpan text);
  void moved(const format::PageKey& key, std::uint32_t slot) {
    moves_.push_back({key, {static_cast<std::uint32_t>(new_groups_.size() - 1), slot}});
  }
  Status move_zeros();
  Status move_device();
  Status move_machine();
  Status move_numbers();
  Status move_losses();
  Status move_loss(format::LossKind kind, const std::optional<Damage>& damage,
                   std::optional<RecordPlace>& place);
  Status pace(std::uint64_t bytes) {
    if (!options_.pace || options_.pace(bytes)) return {};
    return fail(Errc::cancelled, "archiving was stopped");
  }
  [[nodiscard]] format::RecordHead head(RecordType type) const {
    return {type, 0, owner_.id, old_->info.generation, old_->info.epoch};
  }
  void note(const RecordPlace& place, const Error& error) {
    damage_.push_back(
        {place.position(), place.record_bytes(), error.message, owner_.name, place.epoch()});
  }

  Archiver::Ground& ground_;
  const std::set<SegmentId>& sources_;
  const ArchiveOptions& options_;
  const Archiver::Placement& placement_;
  Archives& archives_;
  std::vector<Damage>& damage_;
  std::vector<std::byte> raw_;
  SegmentFiles::Record record_;
  delta::PageGroupEncoder encoder_;

  // Of the epoch being moved.
  SegmentFiles::Owner owner_;
  EpochIndexPtr old_;
  std::shared_ptr<EpochIndex> fresh_;
  std::map<TierKind, Repacked> repacked_;
  std::vector<RecordPlace> new_groups_;
  std::vector<PageTable::Move> moves_;
};

Result<EpochIndexPtr> EpochMover::move(const VmId& vm, const std::string& name,
                                       const EpochIndexPtr& epoch, const PageHeat& heat) {
  owner_ = {vm, name};
  old_ = epoch;
  fresh_ = std::make_shared<EpochIndex>();
  fresh_->info = epoch->info;
  fresh_->previous = epoch->previous;
  fresh_->machine = epoch->machine;
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
  VMSHADOW_TRY(flush(TierKind::ssd));
  return flush(TierKind::hdd);
}

Status EpochMover::move_group(std::span<const LivePage> live) {
  const RecordPlace& place = old_->places.groups[live.front().group];
  VMSHADOW_TRY(pace(place.record_bytes()));
  if (auto read = ground_.segments.read(place, RecordType::page_group, owner_, record_); !read) {
    return is_lost(place, read.error()) ? lose(live, read.error()) : read;
  }
  const auto group = format::decode_page_group(record_.body());
  if (!group) return lose(live, group.error());
  for (const LivePage& page : live) {
    if (page.slot >= group->page_count || group->keys[page.slot] != page.key) {
      return lose(live, {Errc::corrupt, "the group does not hold the page"});
    }
  }
  const bool one_tier = std::all_of(live.begin(), live.end(),
                                    [&](const LivePage& p) { return p.tier == live[0].tier; });
  if (live.size() < group->page_count || !one_tier) {
    return group->codec == format::Codec::lost ? move_lost(live, group->payload)
                                               : repack(live, *group);
  }
  VMSHADOW_TRY(pace(place.record_bytes()));
  VMSHADOW_ASSIGN(const RecordPlace to,
                  archives_.writer(live[0].tier).append(record_.bytes, group->page_count));
  new_groups_.push_back(to);
  for (const LivePage& page : live) moved(page.key, page.slot);
  return {};
}

Status EpochMover::repack(std::span<const LivePage> live, const format::PageGroup& group) {
  const MutableByteSpan pages = MutableByteSpan(raw_).first(group.page_count * kPageBytes);
  if (const auto decoded = delta::decode_pages(group, pages); !decoded) {
    return lose(live, decoded.error());
  }
  for (const LivePage& page : live) {
    Repacked& to = repacked_[page.tier];
    to.keys.push_back(page.key);
    format::append_bytes(to.bytes, ByteSpan(pages).subspan(page.slot * kPageBytes, kPageBytes));
    if (to.keys.size() == format::kGroupPagesMax) VMSHADOW_TRY(flush(page.tier));
  }
  return {};
}

Status EpochMover::flush(TierKind tier) {
  Repacked& from = repacked_[tier];
  if (from.keys.empty()) return {};
  std::vector<std::byte> body;
  encoder_.append_body(body, from.keys, from.bytes.data());
  VMSHADOW_TRY(pace(body.size()));
  VMSHADOW_ASSIGN(const RecordPlace to, archives_.writer(tier).append(head(RecordType::page_group),
                                                                      body, from.keys.size()));
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
      fresh_->own_damage = damage_.back();
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

/// Damage is told of before any segment goes: it may be one that shows it.
bool concerns(const EpochIndex& epoch, const std::set<SegmentId>& sources) {
  return has_untold_damage(epoch) ||
         std::any_of(epoch.uses.begin(), epoch.uses.end(),
                     [&](const SegmentUse& use) { return sources.contains(use.segment); });
}

std::uint64_t live_bytes(const JournalIndex& index, const std::set<SegmentId>& segments) {
  std::uint64_t bytes = 0;
  for (const auto& [id, live] : index.totals().live_bytes) {
    if (segments.contains(id)) bytes += live;
  }
  return bytes;
}

}  // namespace

Result<ArchiveReport> Archiver::run(const std::vector<SegmentId>& sources,
                                    const Placement& placement, const ArchiveOptions& options) {
  ArchiveReport report;
  const std::set<SegmentId> leaving(sources.begin(), sources.end());
  const std::vector<SegmentId> sorted(leaving.begin(), leaving.end());
  Archives archives(ground_, sorted, options, live_bytes(ground_.index, leaving));
  EpochMover mover(ground_, leaving, options, placement, archives, report.damage);
  std::map<VmId, std::map<Epoch, EpochIndexPtr>> changes;

  const auto write = [&]() -> Status {
    for (const VmId& vm : ground_.index.ids()) {
      const std::vector<EpochIndexPtr> epochs = ground_.index.epochs(vm);
      std::optional<PageHeat> heat;
      for (const EpochIndexPtr& epoch : epochs) {
        if (!concerns(*epoch, leaving)) continue;
        if (!heat) heat.emplace(epochs);
        VMSHADOW_ASSIGN(changes[vm][epoch->info.epoch],
                        mover.move(vm, ground_.index.name_of(vm), epoch, *heat));
      }
    }
    return archives.finish();
  };
  if (auto written = write(); !written) {
    archives.discard();
    return fail(std::move(written).error());
  }

  std::vector<SegmentId> made;
  format::Replace replace{sorted, {}, {}};
  for (const ArchiveWriter::Made& segment : archives.segments()) {
    made.push_back(segment.id);
    replace.added.push_back({segment.id, segment.bytes, format::SegmentKind::archive});
    ground_.catalog.add(segment.id, {format::SegmentKind::archive, segment.tier, segment.bytes,
                                     true, false, segment.record_bytes});
  }
  LogWriter::Note note;
  note.head = {RecordType::replace, 0, {}, {}, {}};
  note.body = [&](std::vector<std::byte>& out, const format::JournalPosition& durable) {
    replace.durable = durable;
    format::append_body(out, replace);
  };
  const auto list = [&](bool done) {
    ground_.catalog.set_listed(sorted, !done);
    ground_.catalog.set_listed(made, done);
  };
  note.writing = [&] { list(true); };
  note.refused = [&] { list(false); };
  if (auto noted = ground_.log.note(std::move(note)); !noted) {
    for (const SegmentId id : made) ground_.catalog.remove(id);
    // Where the record may have reached the disk all the same, the next start sees to which of the
    // two counts: both must be there.
    if (noted.error().code == Errc::no_space) archives.discard();
    return fail(std::move(noted).error().with_context("archiving"));
  }

  for (const auto& [vm, epochs] : changes) ground_.index.replace_epochs(vm, epochs);
  report.written_bytes = archives.written_bytes();
  remove(sorted, report);
  return report;
}

void Archiver::remove(const std::vector<SegmentId>& segments, ArchiveReport& report) {
  std::set<TierIndex> tiers;
  for (const SegmentId id : segments) {
    const SegmentFacts facts = *ground_.catalog.find(id);
    const std::string path = ground_.catalog.directory().segment_path(facts.tier, id);
    ground_.catalog.remove(id);
    if (facts.missing) continue;
    ground_.segments.forget(id);
    report.removed_bytes += facts.bytes;
    tiers.insert(facts.tier);
    if (const auto removed = ground_.files.remove(path);
        !removed && removed.error().code != Errc::not_found) {
      spdlog::warn("a segment that is no longer needed stays behind: {}", removed.error().message);
      report.left_behind.push_back(path);
    }
  }
  for (const TierIndex tier : tiers) {
    const std::string path = ground_.catalog.directory().segments_path(tier);
    if (const auto synced = ground_.files.sync_directory(path); !synced) {
      spdlog::warn("segments that were removed may come back after a crash: {}",
                   synced.error().message);
    }
  }
}

}  // namespace vmshadow::store
