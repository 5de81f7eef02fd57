// The parts of `vmshadow-bench store`: each measures one thing on a directory of its own and puts
// its figures, its parameters and its baseline into the report.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <vmshadow/result.h>

#include "scenario/report.h"
#include "scenario/scenario.h"
#include "support/fio.h"

namespace vmshadow::bench {

struct IngestSizes {
  std::size_t pairs{};
  std::size_t vms{};
  std::uint64_t bytes{};  ///< of one round, all VMs together
  std::uint64_t segment_bytes{};
  std::uint64_t tune_bytes{};  ///< of each fio run that looks for its best setting
  std::vector<FioSetting> fio_settings;
};
struct CommitSizes {
  std::size_t commits{};
  std::size_t epoch_bytes{};
  std::uint64_t fill_bytes{};  ///< in the store before the first commit that counts
};
struct RocksdbSizes {
  std::size_t pairs{};
  std::size_t images{};
  std::size_t vms{};
  std::uint64_t vm_pages{};
  std::size_t epochs{};  ///< of each VM, besides the full one
  std::size_t epoch_pages{};
};
struct OpenSizes {
  std::uint64_t vm_pages{};
  std::size_t epochs{};
  std::size_t epoch_pages{};
  std::size_t opens{};          ///< of each kind
  std::size_t child_commits{};  ///< before the child is killed
};
struct ChurnSizes {
  std::uint64_t vm_pages{};
  std::size_t seconds{};  ///< of simulated time
  std::size_t epochs_per_second{};
  std::size_t epoch_pages{};
  std::string retention;
};
struct ReadSizes {
  std::uint64_t vm_pages{};
  std::size_t epochs{};
  std::size_t epoch_pages{};
  std::size_t reads{};
};

struct StoreSizes {
  IngestSizes ingest;
  CommitSizes commit;
  RocksdbSizes rocksdb;
  OpenSizes open;
  ChurnSizes churn;
  ReadSizes read;
};
[[nodiscard]] StoreSizes store_sizes(RunSize size);

/// What a part works with. Each gets an empty directory and leaves it to be removed.
struct PartContext {
  const StoreSizes& sizes;
  std::string directory;
  const std::string& rocksdb_options;
  const Progress& progress;
};

[[nodiscard]] Status measure_ingest(const PartContext& context, Report& report);
[[nodiscard]] Status measure_commit(const PartContext& context, Report& report);
[[nodiscard]] Status measure_rocksdb(const PartContext& context, Report& report);
[[nodiscard]] Status measure_open(const PartContext& context, Report& report);
[[nodiscard]] Status measure_churn(const PartContext& context, Report& report);
[[nodiscard]] Status measure_reads(const PartContext& context, Report& report);

}  // namespace vmshadow::bench
