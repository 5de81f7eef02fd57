// What one page of a random epoch costs at the device, cold.
//
// The store's files are evicted before each read. The device's own counters (/proc/diskstats) are
// read around it; a sample counts only if the bytes the device read are exactly those that this
// process fetched (/proc/self/io): then nobody else read in between, and the requests are ours.
#include <fmt/format.h>

#include <chrono>
#include <numeric>
#include <thread>

#include "base/statistics.h"
#include "scenario/store_adapter.h"
#include "scenario/store_parts.h"
#include "support/host.h"
#include "support/made_epochs.h"
#include "support/stopwatch.h"

namespace vmshadow::bench {
namespace {

constexpr std::size_t kReadPoolGroups = 1024;
constexpr const char* kReadVm = "read";
/// The device's counters move when a request ends, and read-ahead may end after our read.
constexpr int kSettleTries = 20;
constexpr std::chrono::microseconds kSettleStep{200};

struct ReadSamples {
  std::vector<double> milliseconds;
  std::vector<double> device_reads;  ///< of the samples that were ours alone
  std::vector<double> fetched_bytes;
  std::vector<double> read_calls;
};

class ReadProbe {
 public:
  static Result<ReadProbe> create(const std::string& directory) {
    ReadProbe probe;
    if (auto device = device_of(directory)) probe.device_ = *device;
    // What reading the counters itself counts as.
    VMSHADOW_ASSIGN(const ProcessIo first, process_io());
    VMSHADOW_ASSIGN(const ProcessIo second, process_io());
    probe.own_calls_ = second.read_calls - first.read_calls;
    return probe;
  }
  [[nodiscard]] bool sees_device() const { return !device_.empty(); }

  Status sample(const EpochImage& image, PageNumber page, ReadSamples& samples) const {
    std::vector<std::byte> out(kPageBytes);
    VMSHADOW_ASSIGN(const DeviceReads device_before, device());
    VMSHADOW_ASSIGN(const ProcessIo before, process_io());
    const Stopwatch watch;
    VMSHADOW_TRY(image.read_page(BlockIndex{0}, page, out));
    const double milliseconds = watch.milliseconds();
    VMSHADOW_ASSIGN(const ProcessIo after, process_io());
    const std::uint64_t fetched = after.read_bytes - before.read_bytes;
    samples.milliseconds.push_back(milliseconds);
    samples.fetched_bytes.push_back(static_cast<double>(fetched));
    samples.read_calls.push_back(
        static_cast<double>(after.read_calls - before.read_calls - own_calls_));
    if (!sees_device()) return {};
    for (int i = 0; i < kSettleTries; ++i) {
      VMSHADOW_ASSIGN(const DeviceReads now, device());
      const std::uint64_t bytes = now.bytes - device_before.bytes;
      if (bytes > fetched) break;  // somebody else's too
      if (bytes == fetched) {
        samples.device_reads.push_back(static_cast<double>(now.reads - device_before.reads));
        break;
      }
      std::this_thread::sleep_for(kSettleStep);
    }
    return {};
  }

 private:
  [[nodiscard]] Result<DeviceReads> device() const {
    if (device_.empty()) return DeviceReads{};
    return device_reads(device_);
  }
  std::string device_;
  std::uint64_t own_calls_ = 0;
};

double mean(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

Status make_store(const PartContext& context, store::Store& store) {
  const ReadSizes& sizes = context.sizes.read;
  VMSHADOW_ASSIGN(const auto session, store.open_session(kReadVm, "bench"));
  const GroupPool pool(GroupPool::Fill::realistic, kReadPoolGroups, 8);
  const MachineDescription machine = machine_with_pages(sizes.vm_pages);
  std::mt19937_64 random(8);
  for (std::uint64_t epoch = 0; epoch <= sizes.epochs; ++epoch) {
    context.progress.step("reads: making epoch", epoch, sizes.epochs);
    const EpochPlan plan = epoch == 0
                               ? plan_all(sizes.vm_pages, pool, random)
                               : plan_uniform(sizes.epoch_pages, sizes.vm_pages, pool, random);
    VMSHADOW_TRY(ship(*session, make_epoch({vm_id(kReadVm), session->generation(), Epoch{epoch}},
                                           epoch == 0 ? &machine : nullptr, plan, pool)));
  }
  return {};
}

}  // namespace

Status measure_reads(const PartContext& context, Report& report) {
  const ReadSizes& sizes = context.sizes.read;
  StoreSetup setup;
  setup.directory = context.directory + "/store";
  {
    VMSHADOW_ASSIGN(const auto store, open_store(setup));
    VMSHADOW_TRY(make_store(context, *store));
  }
  VMSHADOW_ASSIGN(const auto store, open_store(setup));
  VMSHADOW_ASSIGN(const ReadProbe probe, ReadProbe::create(setup.directory));
  const auto reader = store->reader();
  ReadSamples samples;
  std::mt19937_64 random(9);
  VMSHADOW_TRY(drop_caches(setup.directory));
  for (std::size_t i = 0; i < sizes.reads; ++i) {
    context.progress.step("reads: page", i + 1, sizes.reads);
    VMSHADOW_ASSIGN(const auto image, reader->open(kReadVm, Epoch{random() % (sizes.epochs + 1)}));
    VMSHADOW_TRY(evict_files(setup.directory));
    VMSHADOW_TRY(probe.sample(*image, PageNumber{random() % sizes.vm_pages}, samples));
  }

  report.section("reads: one page of a random epoch, cold");
  report.figure_or_missing(
      "device_reads_per_page",
      samples.device_reads.empty() ? std::nullopt : std::optional(mean(samples.device_reads)),
      "requests at the device (mean)",
      probe.sees_device() ? "another process read from the device during every sample"
                          : "the directory is on no device that /proc/diskstats lists",
      "≤ 2");
  if (!samples.device_reads.empty()) {
    report.figure("device_reads_per_page_max", quantile(samples.device_reads, 1), "requests");
  }
  report.figure("device_read_samples", static_cast<double>(samples.device_reads.size()),
                fmt::format("pages, of {} (the others: not ours alone)", sizes.reads));
  report.figure("read_calls_per_page", mean(samples.read_calls), "read system calls");
  report.figure("fetched_bytes_per_page", mean(samples.fetched_bytes), "bytes from the device");
  report.figure("page_read_ms_p50", quantile(samples.milliseconds, 0.5), "ms");
  report.figure("page_read_ms_p99", quantile(samples.milliseconds, 0.99), "ms");
  report.text("reads_load", fmt::format("a VM of {} pages, a full epoch and {} of {} random pages",
                                        sizes.vm_pages, sizes.epochs, sizes.epoch_pages));
  return {};
}

}  // namespace vmshadow::bench
