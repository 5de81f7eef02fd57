// Sustained ingest of encoded records from a few VMs, against fio's sequential O_DIRECT write of as
// many bytes in the same directory. The two take turns, and turns at being first: a device behind a
// rate limit is faster after a rest. The ratio is the median over the pairs.
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
constexpr std::uint64_t kIngestVmPages = std::uint64_t{1} << 20;
constexpr double kEpochBytesMin = 64 << 10;
constexpr double kEpochBytesMax = 1 << 20;

struct VmLoad {
  std::string name;
  std::vector<MadeEpoch> epochs;
  std::uint64_t bytes{};
};

/// Epochs of 64 KiB to 1 MiB, every size's order of magnitude as likely as any other.
VmLoad make_load(std::size_t vm, std::uint64_t bytes, const GroupPool& pool) {
  VmLoad load{fmt::format("ingest-{}", vm), {}, 0};
  std::mt19937_64 random(vm + 1);
  std::uniform_real_distribution<double> log_bytes(std::log(kEpochBytesMin),
                                                   std::log(kEpochBytesMax));
  const MachineDescription machine = machine_with_pages(kIngestVmPages);
  const auto group_bytes = static_cast<double>(pool.body(0).size());
  while (load.bytes < bytes) {
    const double wanted = std::exp(log_bytes(random));
    const auto groups = static_cast<std::size_t>(std::max(1.0, std::round(wanted / group_bytes)));
    const EpochPlan plan =
        plan_uniform(groups * format::kGroupPagesMax, kIngestVmPages, pool, random);
    const Epoch epoch{load.epochs.size()};
    load.epochs.push_back(make_epoch({vm_id(load.name), Generation{1}, epoch},
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

/// Bytes a second into a new store.
Result<double> ingest(const std::string& directory, const std::vector<VmLoad>& loads,
                      TimeSpent& spent) {
  StoreSetup setup;
  setup.directory = directory;
  VMSHADOW_ASSIGN(const auto store, open_store(setup));
  std::vector<std::unique_ptr<EpochSession>> sessions;
  std::uint64_t bytes = 0;
  for (const VmLoad& load : loads) {
    VMSHADOW_ASSIGN(sessions.emplace_back(), store->open_session(load.name, "bench"));
    bytes += load.bytes;
  }
  std::vector<TimeSpent> spent_by_vm(loads.size());
  VMSHADOW_ASSIGN(const double seconds, run_together(loads.size(), [&](std::size_t vm) -> Status {
                    for (const MadeEpoch& epoch : loads[vm].epochs) {
                      VMSHADOW_TRY(ship_timed(*sessions[vm], epoch, spent_by_vm[vm]));
                    }
                    return {};
                  }));
  for (const TimeSpent& of_vm : spent_by_vm) spent.add(of_vm);
  return static_cast<double>(bytes) / seconds;
}

Result<FioSetting> best_fio_setting(const PartContext& context) {
  const IngestSizes& sizes = context.sizes.ingest;
  FioSetting best;
  double best_speed = 0;
  for (std::size_t i = 0; i < sizes.fio_settings.size(); ++i) {
    context.progress.step("ingest: fio's best setting", i + 1, sizes.fio_settings.size());
    VMSHADOW_ASSIGN(const double speed,
                    fio_write(context.directory, sizes.fio_settings[i], sizes.tune_bytes));
    if (speed <= best_speed) continue;
    best_speed = speed;
    best = sizes.fio_settings[i];
  }
  return best;
}

}  // namespace

Status measure_ingest(const PartContext& context, Report& report) {
  const IngestSizes& sizes = context.sizes.ingest;
  context.progress.step("ingest: making epochs");
  const GroupPool pool(GroupPool::Fill::realistic, kIngestPoolGroups, 1);
  std::vector<VmLoad> loads;
  std::uint64_t bytes = 0;
  std::size_t epochs = 0;
  for (std::size_t vm = 0; vm < sizes.vms; ++vm) {
    loads.push_back(make_load(vm, sizes.bytes / sizes.vms, pool));
    bytes += loads.back().bytes;
    epochs += loads.back().epochs.size();
  }
  VMSHADOW_ASSIGN(const FioSetting setting, best_fio_setting(context));

  const std::string directory = context.directory + "/store";
  TimeSpent spent;
  std::vector<double> ours;
  std::vector<double> fio;
  for (std::size_t pair = 0; pair < sizes.pairs; ++pair) {
    context.progress.step("ingest: pair", pair + 1, sizes.pairs);
    for (const bool fio_now : {pair % 2 == 0, pair % 2 != 0}) {
      if (fio_now) {
        VMSHADOW_ASSIGN(fio.emplace_back(), fio_write(context.directory, setting, bytes));
      } else {
        VMSHADOW_ASSIGN(ours.emplace_back(), ingest(directory, loads, spent));
        VMSHADOW_TRY(remove_tree(directory));
      }
      VMSHADOW_TRY(sync_file_system(context.directory));
    }
  }
  VMSHADOW_ASSIGN(const std::string version, fio_version());

  report.section("ingest: encoded records through append and commit, against fio");
  report.figure_or_missing("ingest_vs_fio", median_ratio(ours, fio), "x", "fewer than 5 pairs",
                           "≥ 0.85");
  report.figure("ingest_MBps", quantile(ours, 0.5) / 1e6, "MB/s");
  report.figure("fio_MBps", quantile(fio, 0.5) / 1e6, "MB/s");
  report.figure("ingest_MBps_best", quantile(ours, 1) / 1e6, "MB/s");
  report.figure("fio_MBps_best", quantile(fio, 1) / 1e6, "MB/s");
  report.figure("ingest_pairs", static_cast<double>(sizes.pairs), "");
  report.figure("ingest_round_MB", static_cast<double>(bytes) / 1e6, "MB each");
  report.figure("ingest_epochs", static_cast<double>(epochs), "a round");
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
