// For builds without RocksDB.
#include "support/rocksdb_baseline.h"

namespace vmshadow::bench {

PageValues::PageValues(const GroupPool& /*pool*/) {}
ByteSpan PageValues::value(std::size_t /*group*/, std::size_t /*slot*/) const { return {}; }

Result<std::unique_ptr<RocksdbBaseline>> RocksdbBaseline::open(const std::string& /*directory*/,
                                                               const std::string& /*options*/) {
  return fail(Errc::unsupported,
              "not built with RocksDB: install librocksdb-dev, then run meson setup "
              "--reconfigure and build again");
}

}  // namespace vmshadow::bench
