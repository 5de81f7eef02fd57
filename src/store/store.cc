#include "store/store.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <map>
#include <mutex>

#include "base/assert.h"
#include "store/directory.h"
#include "store/keyring.h"
#include "store/reader.h"
#include "store/recovery.h"
#include "store/segment_catalog.h"
#include "store/segment_files.h"
#include "store/session.h"
#include "store/tier_choice.h"
#include "store/vm_states.h"

namespace vmshadow::store {

/// Members are destroyed from the last to the first: what writes before what it writes to, the lock
/// at the end.
struct Store::State {
  State(io::FileLock lock, const StoreOptions& o, const Clock& c)
      : lock_file(std::move(lock)), options(o), clock(c) {}

  io::FileLock lock_file;
  StoreOptions options;
  const Clock& clock;
  std::unique_ptr<io::FileSystem> log_files;
  std::shared_ptr<SegmentCatalog> catalog;
  std::shared_ptr<JournalIndex> index;
  std::shared_ptr<Keyring> keys;
  std::shared_ptr<SegmentFiles> segments;
  std::unique_ptr<Reader> reader;  ///< the sessions'
  std::uint64_t generation_slack{};
  std::unique_ptr<VmStates> states;
  CommitFigures commits;
  std::unique_ptr<SpareSegments> spares;
  std::unique_ptr<LogWriter> log;
  std::unique_ptr<Maintenance> maintenance;

  std::mutex mutex;
  std::map<VmId, std::string> live;  ///< who holds a VM's session

  void release(const VmId& vm) {
    const std::lock_guard guard(mutex);
    live.erase(vm);
  }
  [[nodiscard]] std::vector<std::byte> opening(SegmentId id) const;
  /// What a session of the VM seals with; null: nothing.
  [[nodiscard]] Result<crypt::VmKeysPtr> session_keys(const VmId& vm, const std::string& name);
};

/// No VM whose epochs are encrypted goes on in plain, nor under a key that its newest epochs are
/// not sealed with: whoever restores it expects them to be.
Result<crypt::VmKeysPtr> Store::State::session_keys(const VmId& vm, const std::string& name) {
  const std::vector<EpochIndexPtr> epochs = index->epochs(vm);
  const auto sealed = std::find_if(epochs.rbegin(), epochs.rend(),
                                   [](const EpochIndexPtr& epoch) { return epoch->key_id; });
  if (!keys->has_source() && sealed == epochs.rend()) return crypt::VmKeysPtr();
  auto fetched = keys->fetch(vm, name);
  if (sealed == epochs.rend()) {
    if (fetched) keys->set(vm, *fetched);
    return fetched;
  }
  if (!fetched) return fail(missing_key(std::move(fetched).error(), name));
  const format::KeyId& needed = *(*sealed)->key_id;
  if (crypt::find_key(**fetched, needed) != nullptr) {
    keys->set(vm, *fetched);
    return fetched;
  }
  return fail(wrong_key(
      fmt::format(
          "epoch {} is sealed with the key {}, and the one given is {} (to change keys, put "
          "the new one on the first line and keep the old one below it)",
          (*sealed)->info.epoch.value, format::key_id_text(needed),
          format::key_id_text((*fetched)->front().id())),
      name));
}

/// What a journal segment begins with: the segments there are, and the state of each VM.
std::vector<std::byte> Store::State::opening(SegmentId id) const {
  const std::vector<VmId> vms = states->vms();
  format::SegmentList list{catalog->entries(), static_cast<std::uint32_t>(vms.size())};
  list.segments.push_back({id, 0, format::SegmentKind::journal});
  std::vector<std::byte> body;
  format::append_body(body, list);
  std::vector<std::byte> out;
  format::append_record(out, {format::RecordType::segment_list, 0, {}, {}, {}}, body);
  out.resize(out.size() + format::alignment_gap(out.size()));
  format::append_bytes(out, states->records(vms));
  return out;
}

namespace {

/// The smallest grant record: so many generations may have been given out in damaged bytes.
constexpr std::uint64_t kGrantRecordBytesMin =
    format::kRecordPrefixBytes + sizeof(format::GrantBytes);

void report(const std::string& path, const Recovery& recovery) {
  if (const auto& torn = recovery.torn_tail) {
    spdlog::info(
        "store '{}': cut {} bytes of unfinished writing, or of what the file held before, off "
        "segment {} at offset {}",
        path, torn->bytes, segment_file_name(torn->at.segment), torn->at.offset.value);
    for (const std::string& commit : torn->commits) {
      spdlog::warn(
          "store '{}': {} was in what was cut off; it was never acknowledged, unless the "
          "disk lost or damaged what it had called durable",
          path, commit);
    }
  }
  const StoreDirectory& directory = recovery.catalog->directory();
  for (const StoreDirectory::SegmentFile& file : recovery.aside) {
    spdlog::warn(
        "store '{}': '{}' was kept by an earlier start and does not count: remove it once "
        "nothing of it is missed",
        path, directory.aside_path(file.tier, file.id));
  }
  for (const Damage& damage : recovery.damage) {
    spdlog::error("store '{}' is damaged: {}", path, damage.text());
  }
  for (const std::string& name : recovery.foreign) {
    spdlog::warn("store '{}': '{}' in its segments folder is not a segment and is ignored", path,
                 name);
  }
}

/// Leaves on disk only what recovery believes in, all of it durable; ends the last segment.
Status settle(Recovery& recovery, io::FileSystem& files) {
  const StoreDirectory& directory = recovery.catalog->directory();
  for (const auto& [file, doubt] : recovery.leftovers) {
    const std::string segment = directory.segment_path(file.tier, file.id);
    if (doubt.empty()) {
      VMSHADOW_TRY(files.remove(segment));
    } else {
      const std::string aside = directory.aside_path(file.tier, file.id);
      spdlog::warn(
          "store '{}': segment {} does not count any more, but {}: it is kept as '{}'; "
          "remove that once nothing of it is missed",
          directory.path(), segment_file_name(file.id), doubt, aside);
      VMSHADOW_TRY(files.rename(segment, aside));
    }
    VMSHADOW_TRY(files.sync_directory(directory.segments_path(file.tier)));
  }
  if (!recovery.tail) return {};
  const SegmentId id = recovery.tail->segment;
  const auto facts = recovery.catalog->find(id);
  VMSHADOW_ASSIGN(const auto file, files.open(directory.segment_path(facts->tier, id)));
  // What a killed process wrote may be in the page cache alone; truncating syncs as well.
  const std::uint64_t end = recovery.tail->offset.value;
  VMSHADOW_TRY(file->truncate(end));
  recovery.catalog->set_bytes(id, end, false);
  if (recovery.tail_is_damaged) return {};
  const std::vector<std::byte> bytes = format::encode_segment_end(
      id, end, recovery.tail_skeleton, *recovery.tail, recovery.tail_salt);
  const ByteSpan piece = bytes;
  auto sealed = file->write({&piece, 1}, end, io::Durability::durable);
  if (!sealed && sealed.error().code == Errc::no_space) {
    return file->truncate(end);  // it is whole without a seal, and takes longer to read
  }
  VMSHADOW_TRY(std::move(sealed));
  recovery.catalog->set_bytes(id, end + bytes.size(), true);
  return {};
}

}  // namespace

Store::Store(std::shared_ptr<State> state, std::vector<Damage> damage,
             std::optional<TornTail> torn_tail)
    : state_(std::move(state)), damage_(std::move(damage)), torn_tail_(std::move(torn_tail)) {}
Store::~Store() = default;

Result<std::unique_ptr<Store>> Store::open(const std::string& path, const Clock& clock,
                                           const FileSystemMaker& make_files,
                                           const StoreOptions& options) {
  for (const std::uint64_t bytes :
       {options.log.segment_bytes, options.maintenance.archive_segment_bytes}) {
    if (bytes > kSegmentBytesMax) {
      return fail(
          Errc::invalid_argument,
          fmt::format("segments of {} bytes are over the limit of {}", bytes, kSegmentBytesMax));
    }
  }
  VMSHADOW_TRY(check_policy(options.retention));
  VMSHADOW_ASSIGN(auto log_files, make_files());
  VMSHADOW_ASSIGN(auto maintenance_files, make_files());
  VMSHADOW_ASSIGN(io::FileLock lock, StoreDirectory::lock(path));
  VMSHADOW_ASSIGN(const StoreDirectory directory,
                  StoreDirectory::open_or_create(path, *log_files, options.tiers));
  VMSHADOW_ASSIGN(Recovery recovery, recover(directory));
  report(path, recovery);
  VMSHADOW_TRY(settle(recovery, *log_files));

  auto state = std::make_shared<State>(std::move(lock), options, clock);
  state->log_files = std::move(log_files);
  state->catalog = recovery.catalog;
  state->index = recovery.index;
  state->keys = std::make_shared<Keyring>(options.keys);
  state->segments = std::make_shared<SegmentFiles>(state->catalog, state->keys);
  state->reader = std::make_unique<Reader>(state->index, state->segments);
  if (recovery.unknown_bytes > 0) {
    // Raised for all, so that each segment from now on says so: the damage may be gone tomorrow.
    state->generation_slack = recovery.unknown_bytes / kGrantRecordBytesMin + 1;
    for (const VmId& vm : state->index->ids()) {
      const Generation known = state->index->generation_of(vm);
      state->index->add_grant(vm, "", Generation{known.value + state->generation_slack});
    }
  }
  state->states = std::make_unique<VmStates>(*state->index, options.retention);
  state->spares = std::make_unique<SpareSegments>(*state->catalog, spare_limits(options.log));
  VMSHADOW_TRY(state->spares->adopt(recovery.spares, *state->log_files));
  state->log = std::make_unique<LogWriter>(
      OpenSegment::Ground{*state->catalog, *state->log_files, clock, *state->spares}, options.log,
      [raw = state.get()](SegmentId id) { return raw->opening(id); });
  state->maintenance = std::make_unique<Maintenance>(
      Maintenance::Ground{*state->catalog, *state->index, *state->segments, clock, *state->log,
                          *state->states, *state->spares},
      std::move(maintenance_files), options.maintenance);
  if (options.background_maintenance) state->maintenance->start_in_background();
  return std::unique_ptr<Store>(
      new Store(std::move(state), std::move(recovery.damage), std::move(recovery.torn_tail)));
}

Result<std::unique_ptr<EpochSession>> Store::open_session(const std::string& vm_name,
                                                          const std::string& peer) {
  if (!is_valid_vm_name(vm_name)) {
    return fail(Errc::invalid_argument,
                fmt::format("'{}' is not a VM name: use 1 to {} of A-Z a-z 0-9 . _ -", vm_name,
                            kVmNameBytesMax));
  }
  const VmId vm = vm_id(vm_name);
  const std::shared_ptr<State> state = state_;
  {
    const std::lock_guard guard(state->mutex);
    const auto [held, free] = state->live.try_emplace(vm, peer);
    if (!free) {
      return fail(Errc::in_use, fmt::format("VM '{}' is being shadowed by {} already: stop that "
                                            "one first",
                                            vm_name, held->second));
    }
  }
  auto keys = state->session_keys(vm, vm_name);
  if (!keys) {
    state->release(vm);
    return fail(
        std::move(keys).error().with_context(fmt::format("no session for VM '{}'", vm_name)));
  }
  const Generation newest = state->index->generation_of(vm);
  // Of a VM that was never heard of, all that was may have been in what is lost.
  const std::uint64_t slack = newest == Generation{} ? state->generation_slack : 0;
  const Generation generation{newest.value + 1 + slack};
  // Known before it is durable: a segment that begins meanwhile must not say the older one. A grant
  // that fails costs a number.
  state->index->add_grant(vm, vm_name, generation);
  if (auto granted = state->log->grant(vm, vm_name, generation); !granted) {
    state->release(vm);
    return fail(
        std::move(granted).error().with_context(fmt::format("no session for VM '{}'", vm_name)));
  }
  // The session's end lets go of the state, and of the whole store if it was the last.
  Session::Ground ground{*state->log,      *state->index,
                         *state->reader,   state->clock,
                         state->commits,   state->options.piece_bytes,
                         *std::move(keys), [state, vm] { state->release(vm); }};
  return std::make_unique<Session>(std::move(ground), vm_name, generation,
                                   state->index->next_epoch(vm));
}

std::unique_ptr<ShadowReader> Store::reader() const {
  return std::make_unique<Reader>(state_->index, state_->segments);
}

Status Store::change_settings(const std::string& vm_name,
                              const std::function<Status(VmSettings&)>& change) {
  VMSHADOW_TRY(reader()->vm(vm_name));
  const VmId vm = state_->index->id_of(vm_name);
  if (!state_->index->is_named(vm)) {
    return fail(Errc::invalid_argument,
                fmt::format("the name of VM '{}' is lost to damage, so nothing can be set for it: "
                            "shadow the VM once more, and it is known again",
                            vm_name));
  }
  return state_->maintenance->change_settings(vm, change);
}

Status Store::pin(const std::string& vm_name, Epoch epoch) {
  return change_settings(vm_name, [&](VmSettings& settings) -> Status {
    VMSHADOW_TRY(state_->index->chain(vm_name, epoch));
    if (settings.pins.size() >= format::kPinsMax) {
      return fail(Errc::no_space, fmt::format("VM '{}' has {} pins already: unpin some", vm_name,
                                              settings.pins.size()));
    }
    settings.pins.insert(epoch);
    return {};
  });
}

Status Store::unpin(const std::string& vm_name, Epoch epoch) {
  return change_settings(vm_name, [&](VmSettings& settings) -> Status {
    if (settings.pins.erase(epoch) > 0) return {};
    return fail(Errc::not_found,
                fmt::format("epoch {} of VM '{}' is not pinned", epoch.value, vm_name));
  });
}

Status Store::set_retention(const std::string& vm_name,
                            const std::optional<RetentionPolicy>& policy) {
  if (policy) VMSHADOW_TRY(check_policy(*policy));
  return change_settings(vm_name, [&](VmSettings& settings) -> Status {
    settings.policy = policy;
    return {};
  });
}

Status Store::set_quota(const std::string& vm_name, std::uint64_t bytes) {
  return change_settings(vm_name, [&](VmSettings& settings) -> Status {
    settings.quota_bytes = bytes;
    return {};
  });
}

Status Store::scrub(std::uint64_t bytes) { return state_->maintenance->scrub(bytes); }

Status Store::maintain() { return state_->maintenance->pass(); }

void Store::note_reads(const SegmentFiles::Reads& reads) const {
  state_->maintenance->note_reads(reads);
}

std::vector<Damage> Store::damage() const {
  std::vector<Damage> damage = damage_;
  const std::vector<Damage> later = state_->maintenance->damage();
  damage.insert(damage.end(), later.begin(), later.end());
  return damage;
}

StoreStats Store::stats() const {
  const State& state = *state_;
  const JournalIndex::Totals totals = state.index->totals();
  const Maintenance::Figures figures = state.maintenance->figures();
  StoreStats stats;
  {
    const std::lock_guard guard(state_->mutex);
    stats.sessions = state.live.size();
  }
  stats.commits = state.commits.took.counts();
  stats.refused_epochs = state.commits.refused;
  stats.queued_bytes = state.log->queued_bytes();
  stats.kept_memory_bytes = state.log->kept_memory_bytes();
  stats.poisoned = state.log->poisoned();
  stats.epochs = totals.epochs;
  stats.page_versions = totals.page_versions;
  stats.index_bytes = totals.memory_bytes;
  stats.ingested_bytes = state.log->ingested_bytes();
  stats.written_bytes = state.log->written_bytes() + figures.moved_bytes + figures.ahead_bytes;
  stats.ahead_bytes = figures.ahead_bytes;
  stats.moved_bytes = figures.moved_bytes;
  stats.removed_bytes = figures.removed_bytes;
  stats.recycled_segments = state.spares->taken();
  stats.scrubbed_bytes = figures.scrubbed_bytes;
  stats.scrub_rounds = figures.scrub_rounds;
  stats.salvaged_pages = figures.salvaged_pages;
  stats.repaired_pages = figures.repaired_pages;
  stats.lost_pages = figures.lost_pages;
  const auto segments = state.catalog->all();
  const auto& tiers = state.catalog->directory().tiers();
  for (const TierKind kind : {TierKind::ssd, TierKind::hdd}) {
    TierStats tier;
    tier.name = tier_kind_name(kind);
    for (TierIndex i = 0; i < tiers.size(); ++i) {
      const TierDirectory& directory = tiers[i];
      if (directory.kind != kind) continue;
      tier.spare_bytes += state.catalog->spare_bytes(i);
      tier.directories.push_back(directory.path);
      tier.capacity_bytes += directory.capacity_bytes;
      // A file system that cannot be asked has none.
      const std::uint64_t room = tier_room(*state.catalog, i);
      if (room != UINT64_MAX) tier.free_bytes += room;
    }
    if (tier.directories.empty()) continue;
    if (const auto read = figures.read_bytes.find(kind); read != figures.read_bytes.end()) {
      tier.read_bytes = read->second;
    }
    for (const auto& [id, facts] : segments) {
      if (tiers[facts.tier].kind != kind || facts.missing) continue;
      tier.stored_bytes += facts.disk_bytes();
      if (const auto live = totals.live_bytes.find(id); live != totals.live_bytes.end()) {
        tier.live_bytes += live->second;
      }
    }
    stats.tiers.push_back(std::move(tier));
  }
  for (const VmId& id : state.index->ids()) {
    VmStats vm{state.index->name_of(id), 0, 0, state.index->settings_of(id).quota_bytes, 0};
    for (const EpochIndexPtr& epoch : state.index->epochs(id)) {
      ++vm.epochs;
      vm.live_bytes += live_bytes(*epoch);
      vm.newest_cut_ns = std::max(vm.newest_cut_ns, epoch->info.cut_wall.ns);
    }
    stats.vms.push_back(std::move(vm));
  }
  std::sort(stats.vms.begin(), stats.vms.end(),
            [](const VmStats& a, const VmStats& b) { return a.name < b.name; });
  for (const auto& [id, facts] : segments) {
    if (facts.missing) continue;
    ++(facts.kind == format::SegmentKind::journal ? stats.journal_segments
                                                  : stats.archive_segments);
  }
  return stats;
}

}  // namespace vmshadow::store
