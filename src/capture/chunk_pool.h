// Recycled buffers for the stream's bytes. A fresh buffer costs a page fault per page while the
// guest stands still, so buffers are kept and reused: as many as the epochs of late had in use at
// once. What a burst (a first pass, one large epoch) took beyond that is given back, bit by bit.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

#include "base/assert.h"

namespace vmshadow::capture {

/// Buffers of one size. take() and trim() are for one thread; chunks may be returned on any thread
/// and may outlive the pool.
class ChunkPool {
 public:
  /// Keeps up to `kept_max` returned chunks; touches `prepared` of them in advance, and keeps as
  /// many for good.
  ChunkPool(std::size_t chunk_bytes, std::size_t kept_max, std::size_t prepared)
      : shared_(std::make_shared<Shared>()), prepared_(prepared), needed_(prepared) {
    VMSHADOW_ASSERT(prepared <= kept_max);
    shared_->chunk_bytes = chunk_bytes;
    shared_->kept_max = kept_max;
    for (std::size_t i = 0; i < prepared; ++i) {
      shared_->kept.push_back(std::make_unique_for_overwrite<std::byte[]>(chunk_bytes));
      std::memset(shared_->kept.back().get(), 0, chunk_bytes);
    }
  }

  [[nodiscard]] std::size_t chunk_bytes() const { return shared_->chunk_bytes; }

  /// Chunks that wait to be taken.
  [[nodiscard]] std::size_t kept() const {
    const std::lock_guard lock(shared_->mutex);
    return shared_->kept.size();
  }

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
    in_use_most_ = std::max(in_use_most_, ++shared_->in_use);
    return {chunk.release(), [shared = shared_](std::byte* returned) {
              std::unique_ptr<std::byte[]> owned(returned);
              --shared->in_use;
              const std::lock_guard lock(shared->mutex);
              if (shared->kept.size() < shared->kept_max) shared->kept.push_back(std::move(owned));
            }};
  }

  /// To be called between two epochs, while the guest runs. Where the epoch had fewer in use than
  /// are there, one is needed less from here on: an epoch that is large again soon finds them kept.
  /// Never waits either; the next call will do.
  void trim() {
    const std::size_t in_use = shared_->in_use;
    const std::size_t least = std::clamp(in_use_most_, prepared_, shared_->kept_max);
    needed_ = std::max(least, needed_ - std::min<std::size_t>(needed_, 1));
    in_use_most_ = in_use;
    std::vector<std::unique_ptr<std::byte[]>> surplus;  // freed once the lock is
    const std::unique_lock lock(shared_->mutex, std::try_to_lock);
    if (!lock.owns_lock()) return;
    while (!shared_->kept.empty() && shared_->kept.size() + in_use > needed_) {
      surplus.push_back(std::move(shared_->kept.back()));
      shared_->kept.pop_back();
    }
  }

 private:
  struct Shared {
    std::mutex mutex;
    std::atomic<std::size_t> in_use{0};
    std::size_t chunk_bytes{};
    std::size_t kept_max{};
    std::vector<std::unique_ptr<std::byte[]>> kept;
  };
  std::shared_ptr<Shared> shared_;
  const std::size_t prepared_;
  std::size_t needed_;           // at once, by the epochs of late
  std::size_t in_use_most_ = 0;  // since trim()
};

}  // namespace vmshadow::capture
