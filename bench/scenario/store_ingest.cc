// Sustained ingest of encoded records from many VMs, against fio's sequential O_DIRECT write of as
// many bytes in the same directory, at its best settings, into a new file or over one. The two take
// turns, and turns at being first: a device behind a rate limit is faster after a rest. The ratio
// is the median over the pairs.
//
// fio syncs once, at the end of a round; a store that acknowledges epochs cannot. Where a device
// has a cache that takes writes faster than it is flushed, that alone is most of the difference: a
// second run of fio tells how much. It syncs as often as the log ends a write; a store whose disk
// is slow to sync covers several of those with one.
//
// One store takes all rounds, and keeps epochs for a second: what is measured is a store that has
// been at it for a while, with its upkeep, whose segments are begun in the files of older ones. The
// guests write the same few pages again and again, so little of what leaves the journal still
// lives.
#include <fmt/format.h>

#include <cmath>

#include "base/statistics.h"
#include "scenario/store_adapter.h"
#include "scenario/store_parts.h"
#include "support/host.h"
#include "support/made_epochs.h"
#include "support/parallel.h"

namespace vmshadow::bench {
namespace {

constexpr std::size_t kIngestPoolGroups = 1024;
constexpr std::uint64_t kIngestVmPages = std::uint64_t{1} << 10;
/// What one write of the log's takes at most.
constexpr std::uint64_t kBytesPerSync = std::uint64_t{8} << 20;
constexpr const char* kIngestRetention = "window=10s,minutely=0s,hourly=0s,daily=0s";
/// So many segments were recycled before anything counts, or so many rounds were run.
constexpr std::uint64_t kRecycledBefore = 4;
constexpr std::size_t kRoundsBeforeMax = 12;
constexpr double kEpochBytesMin = 64 << 10;
constexpr double kEpochBytesMax = 1 << 20;

struct VmLoad {
  std::vector<MadeEpoch> epochs;
  std::uint64_t bytes{};
};

std::string ingesting_vm(std::size_t vm) { return fmt::format("ingest-{}", vm); }

/// The session's next epochs, of 64 KiB to 1 MiB, every size's order of magnitude as likely as any
/// other.
VmLoad make_load(const std::string& vm, const EpochSession& session, std::uint64_t bytes,
                 const GroupPool& pool) {
  VmLoad load{{}, 0};
  const std::uint64_t first = session.next_epoch().value;
  std::seed_seq seed(vm.begin(), vm.end());
  std::mt19937_64 random(seed);
  random.discard(first);
  std::uniform_real_distribution<double> log_bytes(std::log(kEpochBytesMin),
                                                   std::log(kEpochBytesMax));
  const MachineDescription machine = machine_with_pages(kIngestVmPages);
  const auto group_bytes = static_cast<double>(pool.body(0).size());
  while (load.bytes < bytes) {
    const double wanted = std::exp(log_bytes(random));
    const auto groups = static_cast<std::size_t>(std::max(1.0, std::round(wanted / group_bytes)));
    const EpochPlan plan =
        plan_uniform(groups * format::kGroupPagesMax, kIngestVmPages, pool, random);
    const Epoch epoch{first + load.epochs.size()};
    load.epochs.push_back(make_epoch({vm_id(vm), session.generation(), epoch},
                                     epoch.value == 0 ? &machine : nullptr, plan, pool));
    load.bytes += load.epochs.back().bytes.size();
  }
  return load;
}

/// Where a VM's time went, summed over its epochs.
struct TimeSpent {
  double append_ms{};      ///< copying and checking, and waiting for room in the queue
  double commit_ms{};      ///< from commit() to its return
  double write_sync_ms{};  ///< of that, its batch's last write and sync, as the receipt says
  std::size_t epochs{};
  void add(const TimeSpent& other) {
    append_ms += other.append_ms;
    commit_ms += other.commit_ms;
    write_sync_ms += other.write_sync_ms;
    epochs += other.epochs;
  }
};

Status ship_timed(EpochSession& session, const MadeEpoch& epoch, TimeSpent& spent) {
  const Stopwatch whole;
  std::size_t start = 0;
  for (std::size_t i = 0; i + 1 < epoch.ends.size(); ++i) {
    VMSHADOW_TRY(session.append(ByteSpan(epoch.bytes).subspan(start, epoch.ends[i] - start)));
    start = epoch.ends[i];
  }
  const double append_ms = whole.milliseconds();
  VMSHADOW_ASSIGN(const CommitReceipt receipt,
                  session.commit(ByteSpan(epoch.bytes).subspan(start)));
  spent.add({append_ms, whole.milliseconds() - append_ms,
             std::chrono::duration<double, std::milli>(receipt.sync).count(), 1});
  return {};
}

/// A store that takes rounds of epochs, one after the other.
class SustainedIngest {
 public:
  SustainedIngest(std::string directory, const IngestSizes& sizes, const GroupPool& pool)
      : directory_(std::move(directory)), sizes_(sizes), pool_(pool) {}

  Status open() {
    StoreSetup setup;
    setup.directory = directory_;
    setup.retention = kIngestRetention;
    setup.segment_bytes = sizes_.segment_bytes;
    VMSHADOW_ASSIGN(store_, open_store(setup));
    for (std::size_t vm = 0; vm < sizes_.vms; ++vm) {
      VMSHADOW_ASSIGN(sessions_.emplace_back(), store_->open_session(ingesting_vm(vm), "bench"));
    }
    return {};
  }
  /// Makes the epochs of the next round.
  void prepare() {
    loads_.clear();
    bytes_ = 0;
    epochs_ = 0;
    for (std::size_t vm = 0; vm < sizes_.vms; ++vm) {
      loads_.push_back(
          make_load(ingesting_vm(vm), *sessions_[vm], sizes_.bytes / sizes_.vms, pool_));
      bytes_ += loads_.back().bytes;
      epochs_ += loads_.back().epochs.size();
    }
  }
  /// Ships them: bytes a second.
  Result<double> run(TimeSpent& spent) {
    std::vector<TimeSpent> spent_by_vm(loads_.size());
    VMSHADOW_ASSIGN(const double seconds,
                    run_together(loads_.size(), [&](std::size_t vm) -> Status {
                      for (const MadeEpoch& epoch : loads_[vm].epochs) {
                        VMSHADOW_TRY(ship_timed(*sessions_[vm], epoch, spent_by_vm[vm]));
                      }
                      return {};
                    }));
    for (const TimeSpent& of_vm : spent_by_vm) spent.add(of_vm);
    return static_cast<double>(bytes_) / seconds;
  }
  /// Does what upkeep there is to do, or fio would be measured beside it.
  Status rest() { return store_->maintain(); }
  [[nodiscard]] store::StoreStats stats() const { return store_->stats(); }
  /// Of a round.
  [[nodiscard]] std::uint64_t bytes() const { return bytes_; }
  [[nodiscard]] std::size_t epochs() const { return epochs_; }

 private:
  const std::string directory_;
  const IngestSizes& sizes_;
  const GroupPool& pool_;
  std::unique_ptr<store::Store> store_;
  std::vector<std::unique_ptr<EpochSession>> sessions_;
  std::vector<VmLoad> loads_;
  std::uint64_t bytes_ = 0;
  std::size_t epochs_ = 0;
};

/// The same with a sync every kBytesPerSync, in writes as large as a log's.
FioSetting synced(FioSetting setting) {
  setting.block = "1m";
  setting.depth = kBytesPerSync >> 20;
  setting.writes_per_sync = kBytesPerSync >> 20;
  return setting;
}

Result<FioSetting> best_fio_setting(const PartContext& context) {
  const IngestSizes& sizes = context.sizes.ingest;
  std::vector<FioSetting> settings = sizes.fio_settings;
  for (FioSetting setting : sizes.fio_settings) {
    setting.over = true;
    settings.push_back(setting);
  }
  FioSetting best;
  double best_speed = 0;
  for (std::size_t i = 0; i < settings.size(); ++i) {
    context.progress.step("ingest: fio's best setting", i + 1, settings.size());
    VMSHADOW_ASSIGN(const double speed,
                    fio_write(context.directory, settings[i], sizes.tune_bytes));
    if (speed <= best_speed) continue;
    best_speed = speed;
    best = settings[i];
  }
  return best;
}

}  // namespace

Status measure_ingest(const PartContext& context, Report& report) {
  const IngestSizes& sizes = context.sizes.ingest;
  context.progress.step("ingest: making epochs");
  const GroupPool pool(GroupPool::Fill::realistic, kIngestPoolGroups, 1);
  VMSHADOW_ASSIGN(const FioSetting setting, best_fio_setting(context));

  SustainedIngest ingest(context.directory + "/store", sizes, pool);
  VMSHADOW_TRY(ingest.open());
  TimeSpent unused;
  double first_round = 0;
  for (std::size_t round = 0; round < kRoundsBeforeMax; ++round) {
    if (ingest.stats().recycled_segments >= kRecycledBefore) break;
    context.progress.step("ingest: first rounds, until segments are recycled");
    ingest.prepare();
    VMSHADOW_ASSIGN(const double speed, ingest.run(unused));
    if (round == 0) first_round = speed;
  }

  const store::StoreStats before = ingest.stats();
  TimeSpent spent;
  std::vector<double> ours;
  std::vector<double> fio;
  std::vector<double> fio_synced;
  for (std::size_t pair = 0; pair < sizes.pairs; ++pair) {
    context.progress.step("ingest: pair", pair + 1, sizes.pairs);
    ingest.prepare();
    for (const bool fio_now : {pair % 2 == 0, pair % 2 != 0}) {
      if (fio_now) VMSHADOW_TRY(ingest.rest());
      VMSHADOW_TRY(sync_file_system(context.directory));
      if (fio_now) {
        VMSHADOW_ASSIGN(fio.emplace_back(), fio_write(context.directory, setting, ingest.bytes()));
        VMSHADOW_TRY(sync_file_system(context.directory));
        VMSHADOW_ASSIGN(fio_synced.emplace_back(),
                        fio_write(context.directory, synced(setting), ingest.bytes()));
      } else {
        VMSHADOW_ASSIGN(ours.emplace_back(), ingest.run(spent));
      }
    }
  }
  const store::StoreStats after = ingest.stats();
  const std::uint64_t bytes = ingest.bytes();
  VMSHADOW_ASSIGN(const std::string version, fio_version());

  report.section("ingest: encoded records through append and commit, against fio");
  report.figure_or_missing("ingest_vs_fio", median_ratio(ours, fio), "x", "fewer than 5 pairs",
                           "≥ 0.85");
  report.figure_or_missing("ingest_vs_fio_synced", median_ratio(ours, fio_synced), "x",
                           "fewer than 5 pairs",
                           fmt::format("to fio with a sync every {} MiB", kBytesPerSync >> 20));
  report.figure("ingest_MBps", quantile(ours, 0.5) / 1e6, "MB/s");
  report.figure("ingest_MBps_new_store", first_round / 1e6, "MB/s, the first round");
  report.figure("fio_MBps", quantile(fio, 0.5) / 1e6, "MB/s");
  report.figure("fio_synced_MBps", quantile(fio_synced, 0.5) / 1e6, "MB/s");
  report.figure("ingest_MBps_best", quantile(ours, 1) / 1e6, "MB/s");
  report.figure("fio_MBps_best", quantile(fio, 1) / 1e6, "MB/s");
  report.figure("ingest_pairs", static_cast<double>(sizes.pairs), "");
  report.figure("ingest_round_MB", static_cast<double>(bytes) / 1e6, "MB each");
  report.figure("ingest_epochs", static_cast<double>(ingest.epochs()), "a round");
  report.figure(
      "ingest_segments_recycled",
      static_cast<double>(after.recycled_segments - before.recycled_segments),
      "of about " +
          fmt::format("{:.0f}", static_cast<double>(after.ingested_bytes - before.ingested_bytes) /
                                    static_cast<double>(sizes.segment_bytes)) +
          " begun");
  report.figure("ingest_moved_MB",
                static_cast<double>(after.moved_bytes - before.moved_bytes) / 1e6,
                "MB written by upkeep meanwhile");
  report.figure("ingest_vms", static_cast<double>(sizes.vms), "");
  const auto each = [&](double sum) { return sum / static_cast<double>(spent.epochs); };
  report.figure("ingest_append_ms", each(spent.append_ms), "ms an epoch: checks, copies, queue");
  report.figure("ingest_commit_ms", each(spent.commit_ms), "ms an epoch, waiting for durability");
  report.figure("ingest_write_sync_ms", each(spent.write_sync_ms),
                "ms of that in its batch's own last write and sync");
  report.text("fio", version + ": " + fio_command_text(setting, bytes));
  return {};
}

}  // namespace vmshadow::bench
