// Opening a store whose VM has a long history: after a clean stop, and after a process that was
// ingesting was killed. Cold. And what the index takes in memory.
#include <fmt/format.h>

#include "base/statistics.h"
#include "scenario/ingest_child.h"
#include "scenario/store_adapter.h"
#include "scenario/store_parts.h"
#include "support/host.h"
#include "support/made_epochs.h"
#include "support/stopwatch.h"

namespace vmshadow::bench {
namespace {

constexpr std::size_t kOpenPoolGroups = 1024;
constexpr const char* kOpenVm = "long-history";
constexpr const char* kKilledVm = "killed";

struct Opened {
  std::unique_ptr<store::Store> store;
  double seconds{};
  std::uint64_t heap_bytes{};
};

Result<Opened> open_cold(const std::string& directory) {
  VMSHADOW_TRY(drop_caches(directory));
  StoreSetup setup;
  setup.directory = directory;
  Opened opened;
  const std::uint64_t heap_before = heap_bytes();
  const Stopwatch watch;
  VMSHADOW_ASSIGN(opened.store, open_store(setup));
  opened.seconds = watch.seconds();
  const std::uint64_t heap_after = heap_bytes();
  opened.heap_bytes = heap_after - std::min(heap_before, heap_after);
  return opened;
}

/// Page versions stored.
Result<std::uint64_t> make_history(const PartContext& context, const std::string& directory) {
  const OpenSizes& sizes = context.sizes.open;
  StoreSetup setup;
  setup.directory = directory;
  VMSHADOW_ASSIGN(const auto store, open_store(setup));
  VMSHADOW_ASSIGN(const auto session, store->open_session(kOpenVm, "bench"));
  const GroupPool pool(GroupPool::Fill::small, kOpenPoolGroups, 4);
  const MachineDescription machine = machine_with_pages(sizes.vm_pages);
  std::mt19937_64 random(4);
  std::uint64_t versions = 0;
  for (std::uint64_t epoch = 0; epoch <= sizes.epochs; ++epoch) {
    context.progress.step("open: making the history, epoch", epoch, sizes.epochs);
    const EpochPlan plan = epoch == 0
                               ? plan_all(sizes.vm_pages, pool, random)
                               : plan_uniform(sizes.epoch_pages, sizes.vm_pages, pool, random);
    versions += plan.pages.size();
    VMSHADOW_TRY(ship(*session, make_epoch({vm_id(kOpenVm), session->generation(), Epoch{epoch}},
                                           epoch == 0 ? &machine : nullptr, plan, pool)));
  }
  return versions;
}

/// Every acknowledged epoch is there and its image opens.
Status check_history(const store::Store& store, const std::string& vm, Epoch last) {
  const auto reader = store.reader();
  VMSHADOW_ASSIGN(const VmInfo info, reader->vm(vm));
  if (info.epochs.empty() || info.epochs.back().epoch < last) {
    return fail(Errc::corrupt, fmt::format("epoch {} of VM '{}' was acknowledged and is not there",
                                           last.value, vm));
  }
  VMSHADOW_ASSIGN(const auto image, reader->open(vm, last));
  std::vector<std::byte> page(kPageBytes);
  return image->read_page(BlockIndex{0}, PageNumber{0}, page);
}

}  // namespace

Status measure_open(const PartContext& context, Report& report) {
  const OpenSizes& sizes = context.sizes.open;
  const std::string directory = context.directory + "/store";
  VMSHADOW_ASSIGN(const std::uint64_t versions, make_history(context, directory));
  const std::uint64_t disk_bytes = bytes_under(directory);

  std::vector<double> clean;
  std::vector<double> heap;
  store::StoreStats stats;
  for (std::size_t i = 0; i < sizes.opens; ++i) {
    context.progress.step("open: after a clean stop", i + 1, sizes.opens);
    VMSHADOW_ASSIGN(const Opened opened, open_cold(directory));
    clean.push_back(opened.seconds);
    heap.push_back(static_cast<double>(opened.heap_bytes));
    stats = opened.store->stats();
    VMSHADOW_TRY(check_history(*opened.store, kOpenVm, Epoch{sizes.epochs}));
  }
  std::vector<double> killed;
  for (std::size_t i = 0; i < sizes.opens; ++i) {
    context.progress.step("open: after kill -9", i + 1, sizes.opens);
    VMSHADOW_ASSIGN(const Epoch last,
                    ingest_in_child_and_kill(
                        {directory, kKilledVm, std::min<std::uint64_t>(sizes.vm_pages, 65536),
                         sizes.epoch_pages},
                        sizes.child_commits));
    VMSHADOW_ASSIGN(const Opened opened, open_cold(directory));
    killed.push_back(opened.seconds);
    VMSHADOW_TRY(check_history(*opened.store, kOpenVm, Epoch{sizes.epochs}));
    VMSHADOW_TRY(check_history(*opened.store, kKilledVm, last));
  }

  report.section("open: a long history, cold");
  report.figure("open_s", quantile(clean, 0.5), "s", "≤ 1");
  report.figure("reopen_after_kill_s", quantile(killed, 0.5), "s", "≤ 3");
  report.figure("reopen_after_kill_s_max", quantile(killed, 1), "s");
  report.figure("open_count", static_cast<double>(sizes.opens), "of each kind");
  const auto per_version = [&](double bytes) { return bytes / static_cast<double>(versions); };
  report.figure_or_missing("index_bytes_per_version",
                           stats.page_versions == 0 || stats.index_bytes == 0
                               ? std::nullopt
                               : std::optional(static_cast<double>(stats.index_bytes) /
                                               static_cast<double>(stats.page_versions)),
                           "bytes", "the store's figures do not hold it", "≤ 24");
  report.figure("open_heap_bytes_per_version", per_version(quantile(heap, 0.5)),
                "bytes that the heap grew by while opening");
  report.figure("open_page_versions", static_cast<double>(versions), "pages");
  report.figure("open_disk_MB", static_cast<double>(disk_bytes) / 1e6, "MB");
  report.text("open_load",
              fmt::format("a VM of {} pages, a full epoch and {} of {} random pages; contents are "
                          "small ({:.0f} bytes on disk a page) to fit many",
                          sizes.vm_pages, sizes.epochs, sizes.epoch_pages,
                          per_version(static_cast<double>(disk_bytes))));
  return {};
}

}  // namespace vmshadow::bench
