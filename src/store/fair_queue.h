// What waits for the disk, a lane for each VM, served by deficit round robin: each turn of a lane
// is worth a quantum of bytes, so a VM that floods gets its share and no more.
//
// A lane that was idle is served before those that were not: the commit of a small epoch waits for
// at most a quantum of each other lane as fresh as itself. When its turn is over it stands behind
// the others, and so cannot overtake them again and again (as in fq_codel, RFC 8290):
//
//            push           turn is over, or empty               turn is over
//   idle ───────────► fresh ───────────────────────► waiting ───┐◄──────────┘
//     ▲                                                 │ empty at its turn
//     └─────────────────────────────────────────────────┘
//
// Bytes count as held by their VM from push() to release(). Not locked.
#pragma once

#include <cstddef>
#include <deque>
#include <list>
#include <map>
#include <optional>
#include <utility>

#include <vmshadow/types.h>

#include "base/assert.h"

namespace vmshadow::store {

template <class Item>
class FairQueue {
 public:
  explicit FairQueue(std::size_t quantum_bytes) : quantum_bytes_(quantum_bytes) {}

  void push(const VmId& vm, Item item, std::size_t bytes) {
    const auto lane = lanes_.try_emplace(vm).first;
    lane->second.items.push_back({std::move(item), bytes});
    lane->second.held_bytes += bytes;
    held_bytes_ += bytes;
    if (lane->second.place == Place::idle) {
      lane->second.place = Place::fresh;
      lane->second.deficit = quantum_bytes_;
      fresh_.push_back(lane);
    }
    ++items_;
  }

  /// The next in turn. An item larger than the quantum waits for as many turns as it is worth, or
  /// none if nobody else wants one.
  [[nodiscard]] std::optional<Item> pop() {
    while (items_ > 0) {
      std::list<LaneIterator>& from = fresh_.empty() ? waiting_ : fresh_;
      const LaneIterator lane = from.front();
      Lane& state = lane->second;
      if (!state.items.empty() && state.items.front().bytes <= state.deficit) {
        state.deficit -= state.items.front().bytes;
        Item item = std::move(state.items.front().item);
        state.items.pop_front();
        --items_;
        return item;
      }
      if (state.items.empty() && state.place == Place::waiting) {
        state.place = Place::idle;
        from.pop_front();
        drop_if_unused(lane);
        continue;
      }
      state.place = Place::waiting;
      if (!state.items.empty()) state.deficit += quantum_bytes_;
      waiting_.splice(waiting_.end(), from, from.begin());
    }
    return std::nullopt;
  }

  /// These bytes of a popped item are held no longer.
  void release(const VmId& vm, std::size_t bytes) {
    const auto lane = lanes_.find(vm);
    VMSHADOW_ASSERT(lane != lanes_.end() && lane->second.held_bytes >= bytes);
    lane->second.held_bytes -= bytes;
    held_bytes_ -= bytes;
    drop_if_unused(lane);
  }

  [[nodiscard]] bool empty() const { return items_ == 0; }
  [[nodiscard]] std::size_t held_bytes() const { return held_bytes_; }
  [[nodiscard]] std::size_t held_bytes(const VmId& vm) const {
    const auto lane = lanes_.find(vm);
    return lane == lanes_.end() ? 0 : lane->second.held_bytes;
  }

 private:
  enum class Place { idle, fresh, waiting };
  struct Waiting {
    Item item;
    std::size_t bytes;
  };
  struct Lane {
    std::deque<Waiting> items;
    std::size_t held_bytes = 0;
    std::size_t deficit = 0;  ///< what is left of its turn
    Place place = Place::idle;
  };
  using Lanes = std::map<VmId, Lane>;
  using LaneIterator = typename Lanes::iterator;

  void drop_if_unused(LaneIterator lane) {
    if (lane->second.place == Place::idle && lane->second.held_bytes == 0) lanes_.erase(lane);
  }

  const std::size_t quantum_bytes_;
  Lanes lanes_;
  std::list<LaneIterator> fresh_;
  std::list<LaneIterator> waiting_;
  std::size_t items_ = 0;
  std::size_t held_bytes_ = 0;
};

}  // namespace vmshadow::store
