// RocksDB keeping the same page versions, the baseline of storing and reading whole images.
//
//   key    VM (4 bytes) │ page (8 bytes) │ ~epoch (8 bytes), big-endian: a page's newest version
//   first value  the page, compressed by itself with lz4
//
// Two implementations: one with RocksDB, and one for builds without it, whose open() says so.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <vmshadow/result.h>
#include <vmshadow/types.h>

#include "support/made_epochs.h"

namespace vmshadow::bench {

/// Every page of a pool, compressed by itself.
class PageValues {
 public:
  explicit PageValues(const GroupPool& pool);
  [[nodiscard]] ByteSpan value(std::size_t group, std::size_t slot) const;

 private:
  std::vector<std::vector<std::byte>> values_;
};

class RocksdbBaseline {
 public:
  /// A new data base in `directory`. `options` ("name=value;name=value") go over the tuned ones.
  /// Errc::unsupported if this build has no RocksDB, Errc::invalid_argument for an unknown option.
  [[nodiscard]] static Result<std::unique_ptr<RocksdbBaseline>> open(const std::string& directory,
                                                                     const std::string& options);
  virtual ~RocksdbBaseline() = default;
  /// One WriteBatch with a synced log, durable when it returns. Safe from several threads.
  [[nodiscard]] virtual Status put_epoch(std::uint32_t vm, Epoch epoch, const EpochPlan& plan,
                                         const PageValues& values) = 0;
  /// Flushes and waits until no compaction is due: the state it reads best from.
  [[nodiscard]] virtual Status settle() = 0;
  /// Each page's newest version up to `epoch`, decompressed.
  using PageVisitor = std::function<void(PageNumber page, const std::byte* data)>;
  [[nodiscard]] virtual Status read_image(std::uint32_t vm, Epoch epoch,
                                          const PageVisitor& visit) = 0;
  /// Version and the options it was opened with, for the report.
  [[nodiscard]] virtual std::string description() const = 0;
};

}  // namespace vmshadow::bench
