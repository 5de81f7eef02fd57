// A queue between two threads whose fill is measured in the items' own weight (bytes, usually).
//
// push() never blocks and never refuses: the producer may be draining a stopped guest. Instead the
// producer asks wait_below() at moments when it may wait.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <mutex>
#include <optional>
#include <utility>

#include "base/assert.h"

namespace vmshadow {

template <class T>
class BoundedQueue {
 public:
  /// Appends an item of the given weight. Ignored after close().
  void push(T item, std::size_t weight) {
    {
      const std::lock_guard lock(mutex_);
      if (closed_) return;
      items_.emplace_back(std::move(item), weight);
      weight_ += weight;
    }
    not_empty_.notify_one();
  }

  /// The oldest item, waiting for one; nullopt once the queue is closed and empty. The item's
  /// weight counts until the next pop(), release() or close(): it is still being worked on.
  std::optional<T> pop() {
    std::unique_lock lock(mutex_);
    release_locked();
    not_empty_.wait(lock, [&] { return closed_ || !items_.empty(); });
    if (items_.empty()) return std::nullopt;
    auto [item, weight] = std::move(items_.front());
    items_.pop_front();
    in_hand_ = weight;
    return std::move(item);
  }

  /// The item last popped is done with.
  void release() {
    const std::lock_guard lock(mutex_);
    release_locked();
  }

  /// Waits until the total weight is at most `limit`, the queue is closed, or `timeout` passed;
  /// returns whether the weight is at most `limit`.
  bool wait_below(std::size_t limit, std::chrono::nanoseconds timeout) {
    std::unique_lock lock(mutex_);
    room_.wait_for(lock, timeout, [&] { return closed_ || weight_ <= limit; });
    return weight_ <= limit;
  }

  /// No more pushes; pop() drains what is there and then returns nullopt.
  void close() {
    {
      const std::lock_guard lock(mutex_);
      closed_ = true;
    }
    not_empty_.notify_all();
    room_.notify_all();
  }

  /// Like close(), and drops what is queued.
  void close_and_clear() {
    std::deque<std::pair<T, std::size_t>> dropped;
    {
      const std::lock_guard lock(mutex_);
      closed_ = true;
      dropped.swap(items_);
      weight_ = in_hand_;
    }
    not_empty_.notify_all();
    room_.notify_all();
  }

  /// Takes no lock: whoever looks never holds up a producer.
  [[nodiscard]] std::size_t weight() const { return weight_; }

 private:
  void release_locked() {
    VMSHADOW_ASSERT(weight_ >= in_hand_);
    weight_ -= std::exchange(in_hand_, 0);
    room_.notify_all();
  }

  mutable std::mutex mutex_;
  std::condition_variable not_empty_;
  std::condition_variable room_;
  std::deque<std::pair<T, std::size_t>> items_;
  std::atomic<std::size_t> weight_ = 0;  // changed under the lock
  std::size_t in_hand_ = 0;
  bool closed_ = false;
};

}  // namespace vmshadow
