#include "store/store.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <map>
#include <mutex>

#include "base/assert.h"
#include "store/directory.h"
#include "store/reader.h"
#include "store/recovery.h"
#include "store/segment_files.h"
#include "store/session.h"

namespace vmshadow::store {

/// Members are destroyed from the last to the first: the log before its files, the lock at the end.
struct Store::State {
  State(io::FileLock lock, StoreDirectory dir, const StoreOptions& o)
      : lock_file(std::move(lock)), directory(std::move(dir)), options(o) {}

  io::FileLock lock_file;
  StoreDirectory directory;
  StoreOptions options;
  std::unique_ptr<io::FileSystem> files;
  std::shared_ptr<JournalIndex> index;
  std::shared_ptr<SegmentFiles> segments;
  std::uint64_t generation_slack{};
  std::unique_ptr<LogWriter> log;

  std::mutex mutex;
  std::map<VmId, std::string> live;  ///< who holds a VM's session

  void release(const VmId& vm) {
    const std::lock_guard guard(mutex);
    live.erase(vm);
  }
};

namespace {

/// The smallest grant record: so many generations may have been given out in damaged bytes.
constexpr std::uint64_t kGrantRecordBytesMin =
    format::kRecordPrefixBytes + sizeof(format::GrantBytes);

void report(const std::string& path, const Recovery& recovery) {
  if (const auto& torn = recovery.torn_tail) {
    spdlog::info("store '{}': cut {} bytes of unfinished writing off segment {} at offset {}", path,
                 torn->bytes, segment_file_name(torn->at.segment), torn->at.offset.value);
    for (const std::string& commit : torn->commits) {
      spdlog::warn(
          "store '{}': {} was in what was cut off; it was never acknowledged, unless the "
          "disk lost what it had called durable",
          path, commit);
    }
  }
  for (const Damage& damage : recovery.damage) {
    spdlog::error("store '{}' is damaged: {}", path, damage.text());
  }
  for (const std::string& name : recovery.foreign) {
    spdlog::warn("store '{}': '{}' in its segments folder is not a segment and is ignored", path,
                 name);
  }
}

struct LogStart {
  std::unique_ptr<io::AppendFile> file;
  SegmentId next_segment{1};
};

/// Leaves on disk only what recovery believes in, all of it durable.
Result<LogStart> settle(const StoreDirectory& directory, io::FileSystem& files,
                        const Recovery& recovery) {
  LogStart start;
  if (recovery.torn_segment) {
    VMSHADOW_TRY(files.remove(directory.segment_path(*recovery.torn_segment)));
    VMSHADOW_TRY(files.sync_directory(directory.segments_path()));
  }
  if (!recovery.tail) return start;
  start.next_segment = recovery.tail->segment.next();
  VMSHADOW_ASSIGN(start.file, files.open(directory.segment_path(recovery.tail->segment)));
  if (recovery.torn_tail) {
    VMSHADOW_TRY(start.file->truncate(recovery.torn_tail->at.offset.value));
  } else {
    // What a killed process wrote may be in the page cache alone.
    VMSHADOW_TRY(start.file->write({}, 0, io::Durability::durable));
  }
  return start;
}

}  // namespace

Store::Store(std::shared_ptr<State> state, std::vector<Damage> damage,
             std::optional<TornTail> torn_tail)
    : state_(std::move(state)), damage_(std::move(damage)), torn_tail_(std::move(torn_tail)) {}
Store::~Store() = default;

Result<std::unique_ptr<Store>> Store::open(const std::string& path, const Clock& clock,
                                           std::unique_ptr<io::FileSystem> files,
                                           const StoreOptions& options) {
  if (options.log.segment_bytes > kSegmentBytesMax) {
    return fail(Errc::invalid_argument, fmt::format("segments of {} bytes are over the limit of {}",
                                                    options.log.segment_bytes, kSegmentBytesMax));
  }
  VMSHADOW_ASSIGN(io::FileLock lock, StoreDirectory::lock(path));
  VMSHADOW_ASSIGN(StoreDirectory directory, StoreDirectory::open_or_create(path, *files));
  VMSHADOW_ASSIGN(Recovery recovery, recover(directory));
  report(path, recovery);
  VMSHADOW_ASSIGN(LogStart start, settle(directory, *files, recovery));

  auto state = std::make_shared<State>(std::move(lock), std::move(directory), options);
  state->files = std::move(files);
  state->index = recovery.index;
  state->segments = std::make_shared<SegmentFiles>(state->directory);
  if (recovery.unknown_bytes > 0) {
    state->generation_slack = recovery.unknown_bytes / kGrantRecordBytesMin + 1;
  }
  state->log =
      std::make_unique<LogWriter>(state->directory, *state->files, clock, options.log,
                                  std::move(start.file), recovery.tail, start.next_segment);
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
  const Generation newest = state->index->generation_of(vm);
  const Generation generation{newest.value + 1 + state->generation_slack};
  if (auto granted = state->log->grant(vm, vm_name, generation); !granted) {
    state->release(vm);
    return fail(
        std::move(granted).error().with_context(fmt::format("no session for VM '{}'", vm_name)));
  }
  state->index->add_grant(vm, vm_name, generation);
  const auto last = state->index->last_epoch(vm);
  // The session's end lets go of the state, and of the whole store if it was the last.
  Session::Ground ground{*state->log, *state->index, state->options.piece_bytes,
                         [state, vm] { state->release(vm); }};
  return std::make_unique<Session>(std::move(ground), vm_name, generation,
                                   last ? last->next() : Epoch{0});
}

std::unique_ptr<ShadowReader> Store::reader() const {
  return std::make_unique<Reader>(state_->index, state_->segments);
}

}  // namespace vmshadow::store
