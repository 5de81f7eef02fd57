// Recycled buffers for the stream's bytes. A fresh buffer costs a page fault per page while the
// guest stands still, so buffers are kept and reused; what goes over the pool's size is freed
// again.
#pragma once

#include <cstddef>
#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

#include "base/assert.h"

namespace vmshadow::capture {

/// Buffers of one size. Chunks may be returned on any thread and may outlive the pool.
class ChunkPool {
 public:
  /// Keeps up to `kept_max` returned chunks; touches `prepared` of them in advance.
  ChunkPool(std::size_t chunk_bytes, std::size_t kept_max, std::size_t prepared)
      : shared_(std::make_shared<Shared>()) {
    VMSHADOW_ASSERT(prepared <= kept_max);
    shared_->chunk_bytes = chunk_bytes;
    shared_->kept_max = kept_max;
    for (std::size_t i = 0; i < prepared; ++i) {
      shared_->kept.push_back(std::make_unique_for_overwrite<std::byte[]>(chunk_bytes));
      std::memset(shared_->kept.back().get(), 0, chunk_bytes);
    }
  }

  [[nodiscard]] std::size_t chunk_bytes() const { return shared_->chunk_bytes; }

  /// A chunk of chunk_bytes(), contents undefined. Its last owner gives it back. Never waits: the
  /// thread that is just giving one back may be one that gets a processor only when nobody else
  /// wants it, and the guest may stand still meanwhile.
  [[nodiscard]] std::shared_ptr<std::byte[]> take() {
    std::unique_ptr<std::byte[]> chunk;
    {
      const std::unique_lock lock(shared_->mutex, std::try_to_lock);
      if (lock.owns_lock() && !shared_->kept.empty()) {
        chunk = std::move(shared_->kept.back());
        shared_->kept.pop_back();
      }
    }
    if (!chunk) chunk = std::make_unique_for_overwrite<std::byte[]>(shared_->chunk_bytes);
    return {chunk.release(), [shared = shared_](std::byte* returned) {
              std::unique_ptr<std::byte[]> owned(returned);
              const std::lock_guard lock(shared->mutex);
              if (shared->kept.size() < shared->kept_max) shared->kept.push_back(std::move(owned));
            }};
  }

 private:
  struct Shared {
    std::mutex mutex;
    std::size_t chunk_bytes{};
    std::size_t kept_max{};
    std::vector<std::unique_ptr<std::byte[]>> kept;
  };
  std::shared_ptr<Shared> shared_;
};

}  // namespace vmshadow::capture
