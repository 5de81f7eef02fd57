// Half an hour of a VM's changes in compressed time, with retention at work: how many bytes are
// written for each that came in, and how many are kept for each that is needed.
//
// Of the VM's pages a twentieth is hot and takes four fifths of the changes, half is never changed,
// the rest changes evenly. Time is injected; maintenance runs once each simulated second.
#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "scenario/store_adapter.h"
#include "scenario/store_parts.h"
#include "support/host.h"
#include "support/made_epochs.h"
#include "support/manual_clock.h"
#include "support/stopwatch.h"
#include "support/version_history.h"

namespace vmshadow::bench {
namespace {

constexpr std::size_t kChurnPoolGroups = 1024;
constexpr const char* kChurnVm = "churning";
constexpr std::uint64_t kHotShare = 20;  ///< one page in
constexpr unsigned kHotPercent = 80;     ///< of the changes
constexpr WallTime kStart{1'700'000'000'000'000'000};
constexpr std::uint64_t kSegmentBytes = std::uint64_t{64} << 20;
constexpr std::size_t kImagesChecked = 5;

class Churn {
 public:
  explicit Churn(const PartContext& context)
      : sizes_(context.sizes.churn),
        directory_(context.directory + "/store"),
        progress_(context.progress) {}

  Status run() {
    StoreSetup setup;
    setup.directory = directory_;
    setup.clock = &clock_;
    setup.background_maintenance = false;
    setup.retention = sizes_.retention;
    setup.segment_bytes = kSegmentBytes;
    VMSHADOW_ASSIGN(store_, open_store(setup));
    VMSHADOW_ASSIGN(const ProcessIo before, process_io());
    VMSHADOW_ASSIGN(session_, store_->open_session(kChurnVm, "bench"));
    VMSHADOW_TRY(ship_epoch(plan_all(sizes_.vm_pages, pool_, random_)));
    const Stopwatch watch;
    for (std::size_t second = 0; second < sizes_.seconds; ++second) {
      progress_.step("churn: simulated second", second + 1, sizes_.seconds);
      for (std::size_t i = 0; i < sizes_.epochs_per_second; ++i) {
        clock_.advance(std::chrono::nanoseconds(std::chrono::seconds(1)) /
                       sizes_.epochs_per_second);
        VMSHADOW_TRY(ship_epoch(next_plan()));
      }
      VMSHADOW_TRY(store_->maintain());
    }
    seconds_ = watch.seconds();
    VMSHADOW_TRY(sync_file_system(directory_));
    VMSHADOW_ASSIGN(const ProcessIo after, process_io());
    kernel_written_ = after.written_bytes - before.written_bytes;
    return check_images();
  }
  Status put_into(Report& report) const;

 private:
  EpochPlan next_plan() {
    const std::uint64_t hot = sizes_.vm_pages / kHotShare;
    std::set<std::uint64_t> pages;
    while (pages.size() < sizes_.epoch_pages) {
      const bool is_hot = random_() % 100 < kHotPercent;
      pages.insert(random_() % (is_hot ? hot : sizes_.vm_pages / 2));
    }
    return plan_pages({pages.begin(), pages.end()}, pool_, random_);
  }

  Status ship_epoch(const EpochPlan& plan) {
    const Epoch epoch = session_->next_epoch();
    const MadeEpoch made = make_epoch({vm_id(kChurnVm), session_->generation(), epoch},
                                      epoch.value == 0 ? &machine_ : nullptr, plan, pool_);
    VMSHADOW_TRY(ship(*session_, made));
    history_.add(epoch, plan);
    payload_ += made.bytes.size();
    return {};
  }

  /// The oldest and newest kept epochs and some between read back as they were shipped.
  Status check_images() const {
    VMSHADOW_ASSIGN(const VmInfo info, store_->reader()->vm(kChurnVm));
    for (std::size_t i = 0; i < kImagesChecked; ++i) {
      progress_.step("churn: checking image", i + 1, kImagesChecked);
      const Epoch epoch = info.epochs[i * (info.epochs.size() - 1) / (kImagesChecked - 1)].epoch;
      VMSHADOW_ASSIGN(const auto image, store_->reader()->open(kChurnVm, epoch));
      VMSHADOW_TRY(history_.check(*image, epoch));
    }
    return {};
  }

  const ChurnSizes& sizes_;
  const std::string directory_;
  const Progress& progress_;
  test::ManualClock clock_{kStart};
  std::mt19937_64 random_{6};
  const GroupPool pool_{GroupPool::Fill::realistic, kChurnPoolGroups, 6};
  const MachineDescription machine_ = machine_with_pages(sizes_.vm_pages);
  VersionHistory history_{sizes_.vm_pages, pool_};
  std::unique_ptr<store::Store> store_;
  std::unique_ptr<EpochSession> session_;
  std::uint64_t payload_ = 0;
  std::uint64_t kernel_written_ = 0;
  double seconds_ = 0;
};

Status Churn::put_into(Report& report) const {
  VMSHADOW_ASSIGN(const VmInfo info, store_->reader()->vm(kChurnVm));
  const store::StoreStats stats = store_->stats();
  std::uint64_t stored = 0;
  std::uint64_t live = 0;
  std::uint64_t spare = 0;
  for (const store::TierStats& tier : stats.tiers) {
    stored += tier.stored_bytes;
    live += tier.live_bytes;
    spare += tier.spare_bytes;
  }
  const auto payload = static_cast<double>(payload_);
  const auto on_disk = static_cast<double>(bytes_under(directory_));
  const auto ratio = [](std::uint64_t bytes, double of) {
    return bytes == 0 || of == 0 ? std::nullopt : std::optional(static_cast<double>(bytes) / of);
  };
  const char* why = "the store's figures do not hold it";
  report.section("churn: compressed time, with retention at work");
  report.figure_or_missing("write_amplification", ratio(stats.written_bytes, payload), "x", why,
                           "≤ 1.5");
  report.figure_or_missing("space_amplification", ratio(stored, static_cast<double>(live)), "x",
                           why, "≤ 1.3");
  report.figure("write_amplification_by_kernel", static_cast<double>(kernel_written_) / payload,
                "x, all that the process wrote (/proc/self/io)");
  report.figure("space_amplification_by_model", on_disk / history_.live_bytes(info.epochs),
                "x, files against the pages that kept epochs need");
  report.figure("churn_payload_MB", payload / 1e6, "MB");
  report.figure("churn_disk_MB", on_disk / 1e6, "MB at the end");
  report.figure("churn_spare_MB", static_cast<double>(spare) / 1e6,
                "MB of that in files kept for the next segments");
  report.figure("churn_epochs_shipped", static_cast<double>(session_->next_epoch().value), "");
  report.figure("churn_epochs_kept", static_cast<double>(info.epochs.size()), "");
  report.figure("churn_took_s", seconds_, "s");
  report.text(
      "churn_load",
      fmt::format("{} simulated s, {} epochs/s of {} pages, a VM of {} pages: 1/{} hot with "
                  "{} % of the changes, half never changed; retention {}",
                  sizes_.seconds, sizes_.epochs_per_second, sizes_.epoch_pages, sizes_.vm_pages,
                  kHotShare, kHotPercent, sizes_.retention));
  return {};
}

}  // namespace

Status measure_churn(const PartContext& context, Report& report) {
  Churn churn(context);
  VMSHADOW_TRY(churn.run());
  return churn.put_into(report);
}

}  // namespace vmshadow::bench
