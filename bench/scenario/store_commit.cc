// How long the commit of a small epoch takes while the store maintains itself, against a bare write
// and fdatasync of as many bytes. They take turns in one directory. There are two baselines, a file
// that grows and one whose blocks were reserved: whichever is better counts.
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <thread>

#include "base/statistics.h"
#include "base/unique_fd.h"
#include "scenario/store_adapter.h"
#include "scenario/store_parts.h"
#include "support/bench_clock.h"
#include "support/host.h"
#include "support/made_epochs.h"
#include "support/stopwatch.h"

namespace vmshadow::bench {
namespace {

constexpr std::size_t kCommitPoolGroups = 256;
constexpr std::uint64_t kCommitVmPages = 16384;
/// Simulated seconds in a second: what fills the store is due for thinning while commits are timed.
constexpr std::int64_t kClockSpeed = 600;
constexpr const char* kRetention = "window=2m,minutely=30m,hourly=0s,daily=0s";
constexpr std::uint64_t kFillSegmentBytes = std::uint64_t{64} << 20;

/// The baseline: a file, written front to back with a sync after each piece.
class SyncedFile {
 public:
  enum class Blocks { growing, reserved, written };
  static Result<SyncedFile> create(const std::string& path, Blocks blocks, std::size_t bytes) {
    SyncedFile file;
    file.fd_ = UniqueFd(::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
    if (!file.fd_) return fail_errno(errno, "creating '" + path + "'");
    const auto length = static_cast<off_t>(bytes);
    if (blocks == Blocks::reserved && ::fallocate(file.fd_.get(), 0, 0, length) != 0) {
      return fail_errno(errno, "reserving '" + path + "'");
    }
    if (blocks == Blocks::written) {
      const std::vector<std::byte> zeros(std::size_t{1} << 20);
      for (std::size_t at = 0; at < bytes; at += zeros.size()) {
        if (::pwrite(file.fd_.get(), zeros.data(), zeros.size(), static_cast<off_t>(at)) < 0) {
          return fail_errno(errno, "writing '" + path + "'");
        }
      }
    }
    if (::fsync(file.fd_.get()) != 0) return fail_errno(errno, "syncing '" + path + "'");
    return file;
  }
  /// Milliseconds.
  Result<double> append(ByteSpan bytes) {
    const Stopwatch watch;
    const ssize_t written = ::pwrite(fd_.get(), bytes.data(), bytes.size(), offset_);
    if (written != static_cast<ssize_t>(bytes.size()) || ::fdatasync(fd_.get()) != 0) {
      return fail_errno(written < 0 ? errno : EIO, "writing the baseline's file");
    }
    offset_ += written;
    return watch.milliseconds();
  }

 private:
  UniqueFd fd_;
  off_t offset_ = 0;
};

struct BaselineTimes {
  std::vector<double> growing;
  std::vector<double> reserved;
  std::vector<double> written;  ///< shown only: its blocks had to be written twice
  [[nodiscard]] double best(double q) const {
    return std::min(quantile(growing, q), quantile(reserved, q));
  }
};

class Baseline {
 public:
  static Result<Baseline> create(const std::string& prefix, std::size_t bytes) {
    using Blocks = SyncedFile::Blocks;
    VMSHADOW_ASSIGN(auto growing, SyncedFile::create(prefix + "-growing", Blocks::growing, bytes));
    VMSHADOW_ASSIGN(auto reserved,
                    SyncedFile::create(prefix + "-reserved", Blocks::reserved, bytes));
    VMSHADOW_ASSIGN(auto written, SyncedFile::create(prefix + "-written", Blocks::written, bytes));
    return Baseline{std::move(growing), std::move(reserved), std::move(written), {}};
  }
  static constexpr std::size_t kFiles = 3;
  Status append_to(std::size_t file, ByteSpan bytes) {
    SyncedFile* files[kFiles] = {&growing, &reserved, &written};
    std::vector<double>* milliseconds[kFiles] = {&times.growing, &times.reserved, &times.written};
    VMSHADOW_ASSIGN(milliseconds[file]->emplace_back(), files[file]->append(bytes));
    return {};
  }
  SyncedFile growing;
  SyncedFile reserved;
  SyncedFile written;
  BaselineTimes times;
};

/// Ships a VM's epochs, one after the other.
class Shipper {
 public:
  static Result<Shipper> open(store::Store& store, const std::string& name, const GroupPool& pool) {
    VMSHADOW_ASSIGN(auto session, store.open_session(name, "bench"));
    return Shipper(std::move(session), name, pool);
  }
  MadeEpoch next(std::size_t bytes) {
    const std::size_t group = pool_->body(0).size();
    const std::size_t groups = std::max<std::size_t>(1, (bytes + group / 2) / group);
    const EpochPlan plan =
        plan_uniform(groups * format::kGroupPagesMax, kCommitVmPages, *pool_, random_);
    const Epoch epoch = session_->next_epoch();
    return make_epoch({id_, session_->generation(), epoch}, epoch.value == 0 ? &machine_ : nullptr,
                      plan, *pool_);
  }
  EpochSession& session() { return *session_; }

 private:
  Shipper(std::unique_ptr<EpochSession> session, const std::string& name, const GroupPool& pool)
      : session_(std::move(session)), id_(vm_id(name)), pool_(&pool) {}
  std::unique_ptr<EpochSession> session_;
  VmId id_;
  const GroupPool* pool_;
  MachineDescription machine_ = machine_with_pages(kCommitVmPages);
  std::mt19937_64 random_{7};
};

Status fill(store::Store& store, const GroupPool& pool, std::uint64_t bytes) {
  VMSHADOW_ASSIGN(Shipper shipper, Shipper::open(store, "filled", pool));
  for (std::uint64_t done = 0; done < bytes;) {
    const MadeEpoch epoch = shipper.next(512 << 10);
    VMSHADOW_TRY(ship(shipper.session(), epoch));
    done += epoch.bytes.size();
  }
  return {};
}

/// Maintains a store over and over until destroyed: the first pass finds all that was filled in.
class MaintenanceLoop {
 public:
  explicit MaintenanceLoop(store::Store& store)
      : thread_([this, &store](const std::stop_token& stop) {
          while (!stop.stop_requested() && status_) {
            status_ = store.maintain();
            std::this_thread::sleep_for(std::chrono::milliseconds(10));
          }
        }) {}
  [[nodiscard]] Status stop() {
    thread_.request_stop();
    thread_.join();
    return std::move(status_);
  }

 private:
  Status status_;
  std::jthread thread_;
};

/// Written besides the records that came in: by maintenance, and a little padding.
std::uint64_t moved_bytes(const store::Store& store) {
  const store::StoreStats stats = store.stats();
  return stats.written_bytes - std::min(stats.written_bytes, stats.ingested_bytes);
}

void report_baseline(Report& report, const std::string& prefix, const BaselineTimes& times) {
  const std::pair<const char*, const std::vector<double>&> kinds[] = {
      {"growing", times.growing}, {"reserved", times.reserved}, {"overwriting", times.written}};
  for (const auto& [kind, values] : kinds) {
    report.figure(fmt::format("{}_{}_ms_p50", prefix, kind), quantile(values, 0.5), "ms");
    report.figure(fmt::format("{}_{}_ms_p99", prefix, kind), quantile(values, 0.99), "ms");
  }
}

}  // namespace

Status measure_commit(const PartContext& context, Report& report) {
  const CommitSizes& sizes = context.sizes.commit;
  const std::vector<std::byte> payload(sizes.epoch_bytes, std::byte{0x5a});
  const std::size_t file_bytes = 2 * payload.size() * sizes.commits;  // epochs differ a little
  VMSHADOW_ASSIGN(Baseline idle, Baseline::create(context.directory + "/idle", file_bytes));
  for (std::size_t i = 0; i < sizes.commits; ++i) {
    context.progress.step("commit: fdatasync with nothing beside it", i + 1, sizes.commits);
    for (std::size_t file = 0; file < Baseline::kFiles; ++file) {
      VMSHADOW_TRY(idle.append_to((file + i) % Baseline::kFiles, payload));
    }
  }

  const FastClock clock(kClockSpeed);
  const GroupPool pool(GroupPool::Fill::realistic, kCommitPoolGroups, 2);
  StoreSetup setup;
  setup.directory = context.directory + "/store";
  setup.clock = &clock;
  setup.retention = kRetention;
  setup.background_maintenance = false;  // it starts when the clock does, see MaintenanceLoop
  setup.segment_bytes = kFillSegmentBytes;
  VMSHADOW_ASSIGN(const auto store, open_store(setup));
  context.progress.step("commit: filling the store");
  VMSHADOW_TRY(fill(*store, pool, sizes.fill_bytes));
  VMSHADOW_ASSIGN(Shipper shipper, Shipper::open(*store, "timed", pool));
  VMSHADOW_TRY(ship(shipper.session(), shipper.next(sizes.epoch_bytes)));  // the full one
  VMSHADOW_ASSIGN(Baseline beside, Baseline::create(context.directory + "/beside", file_bytes));

  const std::uint64_t moved_before = moved_bytes(*store);
  MaintenanceLoop maintenance(*store);
  std::vector<double> commits;
  std::uint64_t epoch_bytes = 0;
  for (std::size_t i = 0; i < sizes.commits; ++i) {
    context.progress.step("commit", i + 1, sizes.commits);
    const MadeEpoch epoch = shipper.next(sizes.epoch_bytes);
    epoch_bytes += epoch.bytes.size();
    // Each goes first, second, … as often as the others: what came just before matters.
    for (std::size_t turn = 0; turn <= Baseline::kFiles; ++turn) {
      const std::size_t which = (turn + i) % (Baseline::kFiles + 1);
      if (which < Baseline::kFiles) {
        VMSHADOW_TRY(beside.append_to(which, epoch.bytes));
        continue;
      }
      const Stopwatch watch;
      VMSHADOW_TRY(ship(shipper.session(), epoch));
      commits.push_back(watch.milliseconds());
    }
  }
  VMSHADOW_TRY(maintenance.stop());
  const std::uint64_t moved = moved_bytes(*store) - moved_before;

  report.section("commit: append and commit of a small epoch, against write + fdatasync");
  report.figure("commit_p50_vs_fdatasync", quantile(commits, 0.5) / beside.times.best(0.5), "x",
                "≤ 1.5");
  report.figure("commit_p99_vs_fdatasync", quantile(commits, 0.99) / beside.times.best(0.99), "x",
                "≤ 3");
  report.figure("commit_ms_p50", quantile(commits, 0.5), "ms");
  report.figure("commit_ms_p99", quantile(commits, 0.99), "ms");
  report.figure("fdatasync_ms_p50", beside.times.best(0.5), "ms");
  report.figure("fdatasync_ms_p99", beside.times.best(0.99), "ms");
  report.figure("commit_count", static_cast<double>(commits.size()), "of each, interleaved");
  report.figure("commit_epoch_bytes", static_cast<double>(epoch_bytes / sizes.commits),
                "bytes on average, the same in the baseline");
  report.figure("commit_p50_vs_idle_fdatasync", quantile(commits, 0.5) / idle.times.best(0.5), "x");
  report.figure("commit_p99_vs_idle_fdatasync", quantile(commits, 0.99) / idle.times.best(0.99),
                "x");
  report_baseline(report, "fdatasync", beside.times);
  report_baseline(report, "fdatasync_idle", idle.times);
  report.figure("commit_filled_MB", static_cast<double>(sizes.fill_bytes) / 1e6, "MB");
  report.figure("commit_maintenance_MB", static_cast<double>(moved) / 1e6,
                "MB written besides the epochs meanwhile: maintenance, padding");
  return {};
}

}  // namespace vmshadow::bench
