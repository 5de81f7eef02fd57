// `vmshadow-bench store`: the store's figures, all in one run on one directory.
#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include <algorithm>

#include "io/file.h"
#include "scenario/scenario.h"
#include "scenario/store_parts.h"
#include "support/host.h"

namespace vmshadow::bench {

StoreSizes store_sizes(RunSize size) {
  constexpr std::uint64_t mib = std::uint64_t{1} << 20;
  // Retention in the churn reaches as far as the run is long, so that its windows are all used.
  switch (size) {
    case RunSize::quick:
      return {{kPairsMin, 2, 8 * mib, 2 * mib, 4 * mib, {{"1m", 8}}},
              {20, 64 << 10, 8 * mib},
              {kPairsMin, kPairsMin, 2, 1024, 10, 64},
              {4096, 20, 160, 1, 5},
              {1024, 150, 2, 32, "window=10s,minutely=1h,hourly=0s,daily=0s"},
              {1024, 8, 128, 20}};
    case RunSize::normal:
      return {{9,
               128,
               2048 * mib,
               256 * mib,
               256 * mib,
               {{"256k", 32}, {"1m", 8}, {"1m", 32}, {"4m", 8}}},
              {300, 64 << 10, 256 * mib},
              {kPairsMin, 15, 2, 32768, 100, 512},
              {200'000, 200, 2'000, 3, 20},
              {32768, 300, 5, 208, "window=2m,minutely=30m,hourly=0s,daily=0s"},
              {32768, 64, 1024, 300}};
    case RunSize::full:
      break;
  }
  std::vector<FioSetting> settings;
  for (const char* block : {"64k", "256k", "1m", "4m"}) {
    for (const unsigned depth : {4U, 16U, 64U}) settings.push_back({block, depth});
  }
  return {{9, 128, 4096 * mib, 256 * mib, 1024 * mib, settings},
          {1'000, 64 << 10, 1024 * mib},
          {kPairsMin, 15, 2, 131'072, 200, 1'024},
          {1'000'000, 1'000, 10'000, 3, 50},
          {65'536, 1'800, 5, 208, "window=10m,minutely=1h,hourly=1d,daily=30d"},
          {131'072, 100, 2'048, 1'000}};
}

namespace {

struct Part {
  const char* name;
  Status (*measure)(const PartContext&, Report&);
};
constexpr Part kParts[] = {{"ingest", measure_ingest},   {"commit", measure_commit},
                           {"rocksdb", measure_rocksdb}, {"open", measure_open},
                           {"churn", measure_churn},     {"reads", measure_reads}};

/// What the largest part needs on disk at once, roughly.
std::uint64_t disk_bytes_needed(RunSize size) {
  constexpr std::uint64_t gib = std::uint64_t{1} << 30;
  switch (size) {
    case RunSize::quick:
      return gib / 8;
    case RunSize::normal:
      return 8 * gib;
    case RunSize::full:
      break;
  }
  return 16 * gib;
}

class StoreScenario final : public Scenario {
 public:
  [[nodiscard]] std::string name() const override { return "store"; }
  [[nodiscard]] std::string help() const override {
    return "ingest, commit latency, opening, space and reads of the store, beside fio, fdatasync "
           "and RocksDB on the same directory";
  }
  void add_options(CLI::App& command) override {
    command
        .add_option("--dir", directory_,
                    "where to measure: a directory on the device in question; what is made in it "
                    "is removed again")
        ->required();
    command.add_option("--vms", vms_, "VMs that ingest at once (0: as the size says)")
        ->check(CLI::Range(0, 1000));
    command.add_option("--rocksdb-options", rocksdb_options_,
                       "over the options it is tuned with: name=value;name=value");
    std::vector<std::string> names;
    for (const Part& part : kParts) names.emplace_back(part.name);
    command.add_option("--only", only_, "these parts alone")
        ->check(CLI::IsMember(names))
        ->expected(1, static_cast<int>(names.size()));
  }
  [[nodiscard]] Result<Report> run(RunSize size, const Progress& progress) override;

 private:
  [[nodiscard]] bool wanted(const char* part) const {
    return only_.empty() || std::find(only_.begin(), only_.end(), part) != only_.end();
  }
  [[nodiscard]] Status check_room(RunSize size) const;
  void describe(RunSize size, Report& report) const;

  std::string directory_;
  std::vector<std::string> only_;
  std::string rocksdb_options_;
  std::size_t vms_ = 0;
};

Status StoreScenario::check_room(RunSize size) const {
  VMSHADOW_ASSIGN(const std::uint64_t free, io::free_bytes(directory_));
  if (free >= disk_bytes_needed(size)) return {};
  return fail(Errc::no_space, fmt::format("this run needs about {:.1f} GiB in '{}', and {:.1f} GiB "
                                          "are free: make room or choose a smaller run",
                                          static_cast<double>(disk_bytes_needed(size)) / (1 << 30),
                                          directory_, static_cast<double>(free) / (1 << 30)));
}

void StoreScenario::describe(RunSize size, Report& report) const {
  report.section("run");
  report.text("host", host_text());
  report.text("device", device_of(directory_).value_or("unknown"));
  report.text("size", size == RunSize::quick    ? "quick"
                      : size == RunSize::normal ? "normal"
                                                : "full");
  report.text("cold_means", can_drop_all_caches()
                                ? "page cache dropped (drop_caches) and the store's files evicted"
                                : "the store's files evicted (dropping the whole page cache is "
                                  "for root alone)");
}

Result<Report> StoreScenario::run(RunSize size, const Progress& progress) {
  if (wanted("ingest")) VMSHADOW_TRY(require_fio());
  VMSHADOW_ASSIGN(const WorkDirectory work, WorkDirectory::create_in(directory_));
  VMSHADOW_TRY(check_room(size));
  Report report("store");
  describe(size, report);
  StoreSizes sizes = store_sizes(size);
  if (vms_ > 0) sizes.ingest.vms = vms_;
  for (const Part& part : kParts) {
    if (!wanted(part.name)) continue;
    const std::string directory = work.path() + "/" + part.name;
    VMSHADOW_TRY(io::make_directory(directory));
    if (auto measured = part.measure({sizes, directory, rocksdb_options_, progress}, report);
        !measured) {
      return fail(std::move(measured).error().with_context(part.name));
    }
    VMSHADOW_TRY(remove_tree(directory));
  }
  return report;
}

}  // namespace

std::unique_ptr<Scenario> make_store_scenario() { return std::make_unique<StoreScenario>(); }

}  // namespace vmshadow::bench
