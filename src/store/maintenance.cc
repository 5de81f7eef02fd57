#include "store/maintenance.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "store/tier_choice.h"

namespace vmshadow::store {

using std::chrono::nanoseconds;

namespace {

/// A VM whose newest epoch is older than so many windows has stopped: its epochs rest.
constexpr int kStoppedAfterWindows = 2;

/// Adds to `dropped` (rising) the oldest others that must go for the rest to fit `quota_bytes`.
/// What an epoch holds lives on in the next one but for the pages that that one replaces, so about
/// the smaller of the two is freed; the next pass counts again.
void drop_beyond_quota(const std::vector<EpochIndexPtr>& epochs, const VmSettings& settings,
                       std::vector<Epoch>& dropped) {
  if (settings.quota_bytes == 0) return;
  const std::set<Epoch> going(dropped.begin(), dropped.end());
  std::uint64_t used = 0;
  for (const EpochIndexPtr& epoch : epochs) used += live_bytes(*epoch);
  const auto freed = [&](std::size_t i) {
    return std::min(live_bytes(*epochs[i]), live_bytes(*epochs[i + 1]));
  };
  for (std::size_t i = 0; i + 1 < epochs.size(); ++i) {
    if (going.contains(epochs[i]->info.epoch)) used -= std::min(used, freed(i));
  }
  for (std::size_t i = 0; i + 1 < epochs.size() && used > settings.quota_bytes; ++i) {
    const Epoch epoch = epochs[i]->info.epoch;
    if (settings.pins.contains(epoch) || going.contains(epoch)) continue;
    dropped.push_back(epoch);
    used -= std::min(used, freed(i));
  }
  std::sort(dropped.begin(), dropped.end());
}

/// The dropped epochs of one VM merged into the kept ones behind them.
std::map<Epoch, EpochIndexPtr> merge_all(const std::vector<EpochIndexPtr>& epochs,
                                         const std::vector<Epoch>& dropped) {
  std::map<Epoch, EpochIndexPtr> changes;
  std::vector<EpochIndexPtr> pending;
  auto next = dropped.begin();
  for (const EpochIndexPtr& epoch : epochs) {
    if (!pending.empty() && pending.back()->info.generation != epoch->info.generation) {
      pending.clear();
    }
    if (next != dropped.end() && *next == epoch->info.epoch) {
      ++next;
      changes[epoch->info.epoch] = nullptr;
      pending.push_back(epoch);
    } else if (!pending.empty()) {
      changes[epoch->info.epoch] = merge_dropped(pending, *epoch);
      pending.clear();
    }
  }
  return changes;
}

Archiver::Placement everything_to(TierKind kind) {
  return {[kind](unsigned) { return kind; }, kind};
}

}  // namespace

Maintenance::Maintenance(Ground ground, std::unique_ptr<io::FileSystem> files,
                         const MaintenanceOptions& options)
    : ground_(ground),
      files_(std::move(files)),
      options_(options),
      scrubber_(ground.catalog, ground.index),
      clock_steps_(ground.clock),
      spare_writer_(ground.catalog, ground.spares, *files_, options.spares_ahead,
                    options.spare_bytes) {}

Maintenance::~Maintenance() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  stop_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void Maintenance::start_in_background() {
  thread_ = std::thread([this] { run(); });
}

void Maintenance::run() {
  while (true) {
    {
      std::unique_lock lock(mutex_);
      stop_.wait_for(lock, options_.interval, [this] { return stopping_; });
      if (stopping_) return;
    }
    auto done = pass();
    const auto seconds = std::chrono::duration<double>(options_.interval).count();
    const auto bytes = static_cast<double>(options_.scrub_bytes_per_second) * seconds;
    if (done) done = scrub(static_cast<std::uint64_t>(bytes));
    const std::lock_guard lock(mutex_);
    if (done) {
      last_error_.reset();
    } else if (done.error().code != Errc::cancelled && last_error_ != done.error().code) {
      last_error_ = done.error().code;  // said once, not every second
      spdlog::warn("the store's upkeep does not get on: {}", done.error().message);
    }
  }
}

Status Maintenance::pass() {
  const std::lock_guard lock(pass_mutex_);
  remove_left_behind();
  remove_spares(false);
  note_reads(ground_.segments.take_reads());
  access_.keep([this](SegmentId id) { return ground_.catalog.find(id).has_value(); });
  // A step that fails (a disk is full, say) must not keep the others from making room.
  Status first;
  for (const auto step :
       {&Maintenance::thin, &Maintenance::drain, &Maintenance::compact, &Maintenance::relieve,
        &Maintenance::promote, &Maintenance::write_ahead}) {
    if (auto done = (this->*step)(); !done && first) first = std::move(done);
    if (!first && first.error().code == Errc::cancelled) break;
  }
  remove_spares(false);
  VMSHADOW_TRY(std::move(first));
  const std::lock_guard figures(mutex_);
  ++figures_.passes;
  return {};
}

Status Maintenance::scrub(std::uint64_t bytes) {
  const std::lock_guard lock(pass_mutex_);
  const std::vector<Damage> found = scrubber_.step(bytes);
  {
    const std::lock_guard figures(mutex_);
    figures_.scrubbed_bytes = scrubber_.scrubbed_bytes();
    figures_.scrub_rounds = scrubber_.rounds();
  }
  add_damage(found);
  std::set<SegmentId> archives;
  for (const Damage& damage : found) {
    const auto facts = ground_.catalog.find(damage.at.segment);
    if (facts && facts->kind == format::SegmentKind::archive) archives.insert(damage.at.segment);
  }
  if (archives.empty()) return {};
  return archive({archives.begin(), archives.end()}, placement());
}

void Maintenance::add_damage(const std::vector<Damage>& found) {
  const std::lock_guard lock(mutex_);
  for (const Damage& damage : found) {
    const bool known = std::any_of(damage_.begin(), damage_.end(),
                                   [&](const Damage& d) { return d.at == damage.at; });
    if (known) continue;
    spdlog::error("the store '{}' is damaged: {}", ground_.catalog.directory().path(),
                  damage.text());
    damage_.push_back(damage);
  }
}

Maintenance::Figures Maintenance::figures() const {
  const std::lock_guard lock(mutex_);
  return figures_;
}

std::vector<Damage> Maintenance::damage() const {
  const std::lock_guard lock(mutex_);
  return damage_;
}

// ---- thinning and settings

Status Maintenance::write_state(const VmId& vm) {
  LogWriter::Note note;
  note.head = {format::RecordType::vm_state, 0, vm, ground_.index.generation_of(vm), {}};
  note.vm_name = ground_.index.name_of(vm);
  // Made once: it must not grow between being measured and being written. Epochs that commit
  // meanwhile are none of its business.
  format::VmState state = ground_.states.make(vm, {});
  note.body = [&](std::vector<std::byte>& out, const format::JournalPosition& durable) {
    state.durable = durable;
    format::append_body(out, state);
  };
  return ground_.log.note(std::move(note));
}

Status Maintenance::change_settings(const VmId& vm,
                                    const std::function<Status(VmSettings&)>& change) {
  const std::lock_guard lock(settings_mutex_);
  VmSettings settings = ground_.index.settings_of(vm);
  const VmSettings before = settings;
  VMSHADOW_TRY(change(settings));
  ++settings.version;
  ground_.index.set_settings(vm, settings);
  if (auto written = write_state(vm); !written) {
    VmSettings back = before;
    back.version = settings.version;  // a segment may have begun with it
    ground_.index.set_settings(vm, back);
    return written;
  }
  return {};
}

Status Maintenance::thin() {
  thinned_before_ = unthinned_begins();
  if (const auto step = clock_steps_.look(); step.count() > 0) {
    spdlog::warn(
        "the clock was set ahead by {} s, or this host was suspended: until the store is started "
        "again epochs from before are kept as if they had the new time; pin those that are to stay",
        std::chrono::duration_cast<std::chrono::seconds>(step).count());
  }
  // A VM that has stopped keeps its last window until the room is needed. (In a full store nothing
  // would age: no epoch comes.)
  std::optional<WallTime> now;
  for (TierIndex tier = 0; tier < ground_.catalog.directory().tiers().size(); ++tier) {
    if (is_short(tier)) now = ground_.clock.wall();
  }
  for (const VmId& vm : ground_.index.ids()) VMSHADOW_TRY(thin_vm(vm, now));
  return {};
}

Status Maintenance::thin_vm(const VmId& vm, std::optional<WallTime> now) {
  const std::lock_guard lock(settings_mutex_);
  if (!ground_.index.is_named(vm)) return {};  // no vm_state can be written of it
  const std::vector<EpochIndexPtr> epochs = ground_.index.epochs(vm);
  std::vector<DatedEpoch> dated;
  dated.reserve(epochs.size());
  for (const EpochIndexPtr& epoch : epochs) {
    dated.push_back({epoch->info.epoch, clock_steps_.by_present_clock(epoch->info.committed_wall)});
  }
  VmSettings settings = ground_.index.settings_of(vm);
  std::vector<Epoch> dropped =
      epochs_to_drop(dated, ground_.states.policy_of(vm), settings.pins, now);
  drop_beyond_quota(epochs, settings, dropped);
  if (dropped.empty()) return {};

  ++settings.version;
  ground_.index.set_settings(vm, std::move(settings));
  ground_.states.begin_drop(vm, dropped);
  auto written = write_state(vm);
  if (written) ground_.index.replace_epochs(vm, merge_all(epochs, dropped));
  ground_.states.end_drop(vm);
  return written;
}

// ---- archiving

bool Maintenance::has_tier(TierKind kind) const {
  const auto& tiers = ground_.catalog.directory().tiers();
  return std::any_of(tiers.begin(), tiers.end(),
                     [&](const TierDirectory& tier) { return tier.kind == kind; });
}

bool Maintenance::is_little(TierIndex tier, std::uint64_t room, std::uint64_t taken) const {
  const double share =
      options_.tier_room_min * static_cast<double>(tier_size(ground_.catalog, tier));
  const double wanted = std::min(share, static_cast<double>(options_.tier_room_bytes));
  return static_cast<double>(room - std::min(room, taken)) < wanted;
}

bool Maintenance::is_short(TierIndex tier, std::uint64_t taken) const {
  return is_little(tier, tier_room_without_spares(ground_.catalog, tier), taken);
}

bool Maintenance::is_short_with_spares(TierIndex tier, std::uint64_t taken) const {
  return is_little(tier, tier_room(ground_.catalog, tier), taken);
}

/// What is rewritten within the kept history stays on the fast tier.
Archiver::Placement Maintenance::placement() const {
  if (!has_tier(TierKind::hdd)) return everything_to(TierKind::ssd);
  if (!has_tier(TierKind::ssd)) return everything_to(TierKind::hdd);
  return {[](unsigned versions) { return versions >= 2 ? TierKind::ssd : TierKind::hdd; },
          TierKind::ssd};
}

bool Maintenance::pace(std::uint64_t bytes) {
  std::unique_lock lock(mutex_);
  if (options_.bytes_per_second == 0) return !stopping_;
  const nanoseconds worth{bytes * 1'000'000'000 / options_.bytes_per_second};
  return !stop_.wait_for(lock, worth, [this] { return stopping_; });
}

Status Maintenance::archive(const std::vector<SegmentId>& sources,
                            const Archiver::Placement& placement) {
  Archiver archiver({ground_.catalog, ground_.index, ground_.segments, *files_, ground_.clock,
                     ground_.log, ground_.states, ground_.spares});
  ArchiveOptions options;
  options.segment_bytes = options_.archive_segment_bytes;
  options.pace = [this](std::uint64_t bytes) { return pace(bytes); };
  const MonotonicTime now = ground_.clock.monotonic();
  options.lose_unreadable =
      unreadable_since_ && now - *unreadable_since_ >= options_.unreadable_max;
  auto ran = archiver.run(sources, placement, options);
  if (!ran && ran.error().code == Errc::no_space && remove_spares(true)) {
    ran = archiver.run(sources, placement, options);
  }
  if (!ran) {
    if (ran.error().code == Errc::io && !unreadable_since_) unreadable_since_ = now;
    return fail(std::move(ran).error());
  }
  unreadable_since_.reset();
  ArchiveReport report = *std::move(ran);
  unopened_.insert(report.unopened.begin(), report.unopened.end());
  left_behind_.insert(left_behind_.end(), report.left_behind.begin(), report.left_behind.end());
  add_damage(report.damage);
  const std::lock_guard lock(mutex_);
  figures_.moved_bytes += report.written_bytes;
  figures_.removed_bytes += report.removed_bytes;
  figures_.salvaged_pages += report.salvaged_pages;
  figures_.repaired_pages += report.repaired_pages;
  figures_.lost_pages += report.lost_pages;
  return {};
}

SegmentId Maintenance::unthinned_begins() const {
  SegmentId first = ground_.log.settled_before();
  const WallTime now = ground_.clock.wall();
  for (const VmId& vm : ground_.index.ids()) {
    const std::vector<EpochIndexPtr> epochs = ground_.index.epochs(vm);
    if (epochs.empty()) continue;
    const WallTime newest = epochs.back()->info.committed_wall;
    const RetentionPolicy policy = ground_.states.policy_of(vm);
    const std::int64_t window_ns = nanoseconds(policy.window).count();
    if (now.ns - newest.ns > kStoppedAfterWindows * window_ns) continue;
    // Of what thinning leaves of a minute most is dead: moved before, it would be moved for
    // nothing.
    const WallTime thinned = thinned_up_to(policy, newest);
    // A VM's epochs come one behind the other: the first that is still in the journal says where.
    for (const EpochIndexPtr& epoch : epochs) {
      if (epoch->info.committed_wall < thinned) continue;
      const EpochPlaces& places = epoch->places;
      const auto home = ground_.catalog.find(places.home);
      if (!home || home->kind != format::SegmentKind::journal) continue;
      first = std::min(first, places.home);
      // What it took over from dropped epochs lies further back, and may go.
      const auto own = [&](const RecordPlace& place) {
        if (place.epoch() == epoch->info.epoch) first = std::min(first, place.segment());
      };
      if (places.machine) own(*places.machine);
      if (!places.device.empty()) own(places.device.front());
      for (const RecordPlace& place : places.groups) own(place);
      break;
    }
  }
  return first;
}

bool Maintenance::remove_spares(bool all) {
  bool freed = false;
  for (TierIndex tier = 0; tier < ground_.catalog.directory().tiers().size(); ++tier) {
    if (!all && !is_short_with_spares(tier)) continue;
    freed = ground_.spares.remove_all(tier, *files_) || freed;
    freed = spare_writer_.give_up(tier) || freed;
  }
  return freed;
}

void Maintenance::remove_left_behind() {
  std::erase_if(left_behind_, [&](const std::string& path) {
    const auto removed = files_->remove(path);
    return removed || removed.error().code == Errc::not_found;
  });
}

std::uint64_t Maintenance::room() const {
  std::uint64_t room = 0;
  for (TierIndex tier = 0; tier < ground_.catalog.directory().tiers().size(); ++tier) {
    const std::uint64_t of_tier = tier_room(ground_.catalog, tier);
    room = of_tier > UINT64_MAX - room ? UINT64_MAX : room + of_tier;
  }
  return room;
}

Status Maintenance::drain() {
  while (true) {
    const SegmentId settled = ground_.log.settled_before();
    const auto live = ground_.index.totals().live_bytes;
    struct Candidate {
      SegmentId id;
      std::uint64_t bytes;
      std::uint64_t live;
      bool is_urgent;
    };
    std::vector<Candidate> candidates;
    std::uint64_t dead = 0;
    for (const auto& [id, facts] : ground_.catalog.all()) {
      if (facts.kind != format::SegmentKind::journal) continue;
      const bool is_urgent = is_short(facts.tier);
      if (id >= settled || (id >= thinned_before_ && !is_urgent)) break;
      const auto found = live.find(id);
      const std::uint64_t needed = found == live.end() ? 0 : found->second;
      candidates.push_back({id, facts.missing ? 0 : facts.bytes, needed, is_urgent});
      dead += candidates.back().bytes - std::min(candidates.back().bytes, needed);
    }
    std::uint64_t live_of_all = 0;
    for (const auto& [id, bytes] : live) live_of_all += bytes;
    const auto dead_max =
        static_cast<std::uint64_t>(options_.journal_dead_max * static_cast<double>(live_of_all));
    // What one run moves must fit before what it frees is free.
    const std::uint64_t room_for_run = room() / 2;
    std::vector<SegmentId> sources;
    std::uint64_t bytes = 0;
    std::uint64_t moved = 0;
    for (const Candidate& segment : candidates) {
      if (bytes >= options_.run_bytes_max) break;
      if (segment.live > 0 && dead <= dead_max && !segment.is_urgent) break;
      moved += segment.live;
      if (!sources.empty() && moved > room_for_run) break;
      sources.push_back(segment.id);
      bytes += segment.bytes;
      dead -= segment.bytes - std::min(segment.bytes, segment.live);
    }
    if (sources.empty()) return {};
    VMSHADOW_TRY(archive(sources, placement()));
  }
}

bool Maintenance::is_missed(SegmentId segment) const {
  for (const VmId& vm : ground_.index.ids()) {
    for (const EpochIndexPtr& epoch : ground_.index.epochs(vm)) {
      if (epoch->base_damage && epoch->base_damage->at.segment == segment) return true;
    }
  }
  return false;
}

Status Maintenance::compact() {
  if (const auto changes = ground_.segments.keys().changes(); changes != unopened_at_key_change_) {
    unopened_at_key_change_ = changes;
    unopened_.clear();
  }
  std::uint64_t stored_before = UINT64_MAX;
  while (true) {
    struct Candidate {
      SegmentId id;
      std::uint64_t bytes;
      std::uint64_t live;
    };
    std::vector<Candidate> archives;
    std::uint64_t stored = 0;
    std::uint64_t live = 0;
    const auto totals = ground_.index.totals();
    for (const auto& [id, facts] : ground_.catalog.all()) {
      if (facts.kind != format::SegmentKind::archive) continue;
      // Its file may be found again. Once nobody misses it, it is struck off the list.
      if (facts.missing && is_missed(id)) continue;
      const auto found = totals.live_bytes.find(id);
      const std::uint64_t needed = found == totals.live_bytes.end() ? 0 : found->second;
      if (needed > 0 && unopened_.contains(id)) continue;
      archives.push_back({id, facts.missing ? 0 : facts.record_bytes, needed});
      stored += archives.back().bytes;
      live += needed;
    }
    const std::uint64_t stored_all = stored;
    const auto share = [](const Candidate& c) {
      return static_cast<double>(c.live) / static_cast<double>(std::max<std::uint64_t>(1, c.bytes));
    };
    std::sort(archives.begin(), archives.end(),
              [&](const Candidate& a, const Candidate& b) { return share(a) < share(b); });
    std::vector<SegmentId> sources;
    std::uint64_t taken = 0;
    for (const Candidate& archive : archives) {
      const bool sparse =
          share(archive)<options_.archive_live_max&& static_cast<double>(stored)> options_
              .archive_space_max *
          static_cast<double>(live);
      if (archive.live > 0 && (!sparse || taken >= options_.run_bytes_max)) break;
      sources.push_back(archive.id);
      taken += archive.bytes;
      stored -= std::min(stored, archive.bytes - std::min(archive.bytes, archive.live));
    }
    // Each run must have been worth it: what cannot be made smaller is left alone until it is
    // sparser.
    if (sources.empty() || stored_all >= stored_before) return {};
    stored_before = stored_all;
    VMSHADOW_TRY(archive(sources, placement()));
  }
}

void Maintenance::note_reads(const SegmentFiles::Reads& reads) {
  const MonotonicTime now = ground_.clock.monotonic();
  const auto& tiers = ground_.catalog.directory().tiers();
  for (const auto& [segment, bytes] : reads) {
    const auto facts = ground_.catalog.find(segment);
    if (!facts) continue;
    access_.note(segment, bytes, now);
    const std::lock_guard lock(mutex_);
    figures_.read_bytes[tiers[facts->tier].kind] += bytes;
  }
}

/// Moves the archives of a fast tier that is nearly full to the slow one: first those that nobody
/// has read lately, and of these the oldest.
Status Maintenance::relieve() {
  if (!has_tier(TierKind::hdd)) return {};
  const auto& tiers = ground_.catalog.directory().tiers();
  for (TierIndex tier = 0; tier < tiers.size(); ++tier) {
    if (tiers[tier].kind != TierKind::ssd) continue;
    while (is_short(tier)) {
      const auto segments = ground_.catalog.all();
      const MonotonicTime now = ground_.clock.monotonic();
      auto coolest = segments.end();
      for (auto entry = segments.begin(); entry != segments.end(); ++entry) {
        const SegmentFacts& facts = entry->second;
        if (facts.kind != format::SegmentKind::archive || facts.tier != tier || facts.missing) {
          continue;
        }
        if (coolest == segments.end() ||
            access_.recent_bytes(entry->first, now) < access_.recent_bytes(coolest->first, now)) {
          coolest = entry;
        }
      }
      if (coolest == segments.end()) break;
      if (!choose_tier_of(ground_.catalog, TierKind::hdd, coolest->second.bytes)) break;
      VMSHADOW_TRY(archive({coolest->first}, everything_to(TierKind::hdd)));
    }
  }
  return {};
}

/// A disk that is busy with epochs is left to them. (An idle priority would do that as well, where
/// the disk has a scheduler that knows it; fast ones mostly have none.)
Status Maintenance::write_ahead() {
  const auto seconds = std::chrono::duration<double>(options_.interval).count();
  const auto worth =
      static_cast<std::uint64_t>(static_cast<double>(options_.spare_bytes_per_second) * seconds);
  const std::uint64_t ingested = ground_.log.ingested_bytes();
  const bool is_quiet = ingested - std::exchange(ingested_before_, ingested) <= worth;
  if (!is_quiet) return {};
  const auto written = spare_writer_.step(worth, [this](TierIndex tier, std::uint64_t bytes) {
    return is_short_with_spares(tier, bytes);
  });
  // Nothing needs it: a disk that is full without anyone seeing it come is none of our business.
  if (!written) return written.error().code == Errc::no_space ? Status() : fail(written.error());
  const std::lock_guard lock(mutex_);
  figures_.ahead_bytes += *written;
  return {};
}

/// Moves what is read again and again from the slow tier to the fast one, as long as that one is
/// not short of room for it.
Status Maintenance::promote() {
  if (!has_tier(TierKind::ssd)) return {};
  const auto& tiers = ground_.catalog.directory().tiers();
  const MonotonicTime now = ground_.clock.monotonic();
  for (const auto& [id, facts] : ground_.catalog.all()) {
    if (facts.kind != format::SegmentKind::archive || facts.missing ||
        tiers[facts.tier].kind != TierKind::hdd ||
        access_.recent_bytes(id, now) <
            options_.promote_reads_min * static_cast<double>(facts.bytes)) {
      continue;
    }
    const auto to = choose_tier_of(ground_.catalog, TierKind::ssd, facts.bytes);
    if (!to || is_short_with_spares(*to, 2 * facts.bytes)) continue;
    VMSHADOW_TRY(archive({id}, everything_to(TierKind::ssd)));
  }
  return {};
}

}  // namespace vmshadow::store
