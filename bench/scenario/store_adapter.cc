#include "scenario/store_adapter.h"

#include "io/append_file.h"
#include "store/retention.h"

namespace vmshadow::bench {

Result<std::unique_ptr<store::Store>> open_store(const StoreSetup& setup) {
  store::StoreOptions options;
  options.log.segment_bytes = setup.segment_bytes;
  options.background_maintenance = setup.background_maintenance;
  VMSHADOW_ASSIGN(options.retention, store::parse_policy(setup.retention, options.retention));
  return store::Store::open(
      setup.directory, *setup.clock,
      [] { return io::make_file_system(io::FileBackend::automatic); }, options);
}

}  // namespace vmshadow::bench
