// Storing the same page versions durably in RocksDB, and reading whole images back at random
// epochs. Several VMs write at once, one thread each; both sides get exactly the same pages in the
// same epochs and make each epoch durable before the next. Stores take turns, a new one each;
// images are read from the last of each, cold, and must have the same content.
#include <fmt/format.h>

#include "base/hash.h"
#include "base/statistics.h"
#include "scenario/store_adapter.h"
#include "scenario/store_parts.h"
#include "support/host.h"
#include "support/made_epochs.h"
#include "support/parallel.h"
#include "support/rocksdb_baseline.h"

namespace vmshadow::bench {
namespace {

constexpr std::size_t kRocksdbPoolGroups = 1024;

struct VmHistory {
  std::string name;
  std::vector<EpochPlan> plans;
  std::vector<MadeEpoch> epochs;
};

VmHistory make_history(std::size_t vm, const RocksdbSizes& sizes, const GroupPool& pool) {
  VmHistory history{fmt::format("vm-{}", vm), {}, {}};
  std::mt19937_64 random(vm + 11);
  const MachineDescription machine = machine_with_pages(sizes.vm_pages);
  for (std::uint64_t epoch = 0; epoch <= sizes.epochs; ++epoch) {
    history.plans.push_back(epoch == 0
                                ? plan_all(sizes.vm_pages, pool, random)
                                : plan_uniform(sizes.epoch_pages, sizes.vm_pages, pool, random));
    history.epochs.push_back(make_epoch({vm_id(history.name), Generation{1}, Epoch{epoch}},
                                        epoch == 0 ? &machine : nullptr, history.plans.back(),
                                        pool));
  }
  return history;
}

struct Image {
  double seconds{};
  std::uint64_t pages{};
  std::uint64_t sum{};  ///< over page numbers and contents, in any order
  void add(PageNumber page, const std::byte* data) {
    ++pages;
    sum += checksum64({data, kPageBytes}) * (2 * page.value + 1);
  }
};

class Comparison {
 public:
  Comparison(const PartContext& context, const RocksdbSizes& sizes)
      : sizes_(sizes),
        ours_path_(context.directory + "/store"),
        theirs_path_(context.directory + "/rocksdb"),
        rocksdb_options_(context.rocksdb_options),
        progress_(context.progress) {
    progress_.step("rocksdb: making epochs");
    for (std::size_t vm = 0; vm < sizes.vms; ++vm) {
      histories_.push_back(make_history(vm, sizes, pool_));
    }
  }

  Status run() {
    for (std::size_t pair = 0; pair < sizes_.pairs; ++pair) {
      progress_.step("rocksdb: storing, pair", pair + 1, sizes_.pairs);
      VMSHADOW_TRY(store_in_rocksdb());
      VMSHADOW_TRY(store_in_ours());
    }
    std::mt19937_64 random(5);
    for (std::size_t i = 0; i < sizes_.images; ++i) {
      progress_.step("rocksdb: reading image", i + 1, sizes_.images);
      const auto vm = static_cast<std::size_t>(random() % sizes_.vms);
      VMSHADOW_TRY(read_from_both(vm, Epoch{random() % (sizes_.epochs + 1)}));
    }
    return {};
  }
  void put_into(Report& report) const;

 private:
  Status store_in_rocksdb() {
    rocksdb_.reset();
    VMSHADOW_TRY(remove_tree(theirs_path_));
    VMSHADOW_ASSIGN(rocksdb_, RocksdbBaseline::open(theirs_path_, rocksdb_options_));
    VMSHADOW_ASSIGN(const double seconds,
                    run_together(histories_.size(), [&](std::size_t vm) -> Status {
                      const auto& plans = histories_[vm].plans;
                      for (std::uint64_t epoch = 0; epoch < plans.size(); ++epoch) {
                        VMSHADOW_TRY(rocksdb_->put_epoch(static_cast<std::uint32_t>(vm),
                                                         Epoch{epoch}, plans[epoch], values_));
                      }
                      return {};
                    }));
    theirs_per_s_.push_back(static_cast<double>(page_versions()) / seconds);
    VMSHADOW_TRY(rocksdb_->settle());
    return sync_file_system(theirs_path_);
  }

  Status store_in_ours() {
    ours_.reset();
    VMSHADOW_TRY(remove_tree(ours_path_));
    StoreSetup setup;
    setup.directory = ours_path_;
    VMSHADOW_ASSIGN(ours_, open_store(setup));
    std::vector<std::unique_ptr<EpochSession>> sessions;
    for (const VmHistory& history : histories_) {
      VMSHADOW_ASSIGN(sessions.emplace_back(), ours_->open_session(history.name, "bench"));
    }
    VMSHADOW_ASSIGN(const double seconds,
                    run_together(histories_.size(), [&](std::size_t vm) -> Status {
                      for (const MadeEpoch& epoch : histories_[vm].epochs) {
                        VMSHADOW_TRY(ship(*sessions[vm], epoch));
                      }
                      return {};
                    }));
    ours_per_s_.push_back(static_cast<double>(page_versions()) / seconds);
    return sync_file_system(ours_path_);
  }

  Status read_from_both(std::size_t vm, Epoch epoch) {
    Image theirs;
    VMSHADOW_TRY(drop_caches(theirs_path_));
    const Stopwatch their_watch;
    VMSHADOW_TRY(rocksdb_->read_image(
        static_cast<std::uint32_t>(vm), epoch,
        [&](PageNumber page, const std::byte* data) { theirs.add(page, data); }));
    their_read_s_.push_back(their_watch.seconds());

    Image ours;
    VMSHADOW_TRY(drop_caches(ours_path_));
    const Stopwatch our_watch;
    VMSHADOW_ASSIGN(const auto image, ours_->reader()->open(histories_[vm].name, epoch));
    VMSHADOW_TRY(
        image->for_each_page(BlockIndex{0}, [&](PageNumber page, const std::byte* data) -> Status {
          ours.add(page, data);
          return {};
        }));
    our_read_s_.push_back(our_watch.seconds());
    if (ours.pages != sizes_.vm_pages || ours.pages != theirs.pages || ours.sum != theirs.sum) {
      return fail(
          Errc::corrupt,
          fmt::format("epoch {} of VM '{}' reads back differently: {} pages here, {} from "
                      "RocksDB, of {}",
                      epoch.value, histories_[vm].name, ours.pages, theirs.pages, sizes_.vm_pages));
    }
    return {};
  }

  [[nodiscard]] std::uint64_t page_versions() const {
    std::uint64_t versions = 0;
    for (const VmHistory& history : histories_) {
      for (const MadeEpoch& epoch : history.epochs) versions += epoch.pages;
    }
    return versions;
  }

  const RocksdbSizes& sizes_;
  const std::string ours_path_;
  const std::string theirs_path_;
  const std::string& rocksdb_options_;
  const Progress& progress_;
  const GroupPool pool_{GroupPool::Fill::realistic, kRocksdbPoolGroups, 3};
  const PageValues values_{pool_};
  std::vector<VmHistory> histories_;
  std::unique_ptr<store::Store> ours_;
  std::unique_ptr<RocksdbBaseline> rocksdb_;
  std::vector<double> ours_per_s_;
  std::vector<double> theirs_per_s_;
  std::vector<double> our_read_s_;
  std::vector<double> their_read_s_;
};

void Comparison::put_into(Report& report) const {
  report.figure_or_missing("ingest_vs_rocksdb", median_ratio(ours_per_s_, theirs_per_s_), "x",
                           "fewer than 5 pairs", "≥ 3");
  report.figure("store_page_versions_per_s", quantile(ours_per_s_, 0.5), "pages/s");
  report.figure("rocksdb_page_versions_per_s", quantile(theirs_per_s_, 0.5), "pages/s");
  report.figure("rocksdb_pairs", static_cast<double>(ours_per_s_.size()), "");
  report.figure_or_missing("read_vs_rocksdb", median_ratio(their_read_s_, our_read_s_), "x",
                           "fewer than 5 pairs", "≥ 2");
  report.figure("store_image_read_s", quantile(our_read_s_, 0.5), "s");
  report.figure("rocksdb_image_read_s", quantile(their_read_s_, 0.5), "s");
  report.figure("image_reads", static_cast<double>(our_read_s_.size()), "of each, cold");
  report.figure("rocksdb_page_versions", static_cast<double>(page_versions()), "pages");
  report.figure("store_disk_MB", static_cast<double>(bytes_under(ours_path_)) / 1e6, "MB");
  report.figure("rocksdb_disk_MB", static_cast<double>(bytes_under(theirs_path_)) / 1e6, "MB");
  report.text("rocksdb_load",
              fmt::format("{} VMs of {} pages, a full epoch and {} of {} random pages each",
                          sizes_.vms, sizes_.vm_pages, sizes_.epochs, sizes_.epoch_pages));
  report.text("rocksdb", rocksdb_->description());
}

}  // namespace

Status measure_rocksdb(const PartContext& context, Report& report) {
  report.section("rocksdb: the same page versions stored durably, and images at random epochs");
  if (auto probe = RocksdbBaseline::open(context.directory + "/probe", context.rocksdb_options);
      !probe) {
    if (probe.error().code != Errc::unsupported) return fail(std::move(probe).error());
    report.missing("ingest_vs_rocksdb", probe.error().message, "≥ 3");
    report.missing("read_vs_rocksdb", probe.error().message, "≥ 2");
    return {};
  }
  Comparison comparison(context, context.sizes.rocksdb);
  VMSHADOW_TRY(comparison.run());
  comparison.put_into(report);
  return {};
}

}  // namespace vmshadow::bench
