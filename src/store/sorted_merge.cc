#include "store/sorted_merge.h"

#include <algorithm>

namespace vmshadow::store {

namespace {

/// The place in a list, ordered by page and then the newest list first.
struct Cursor {
  std::uint64_t page{};
  std::uint32_t list{};
  std::size_t at{};
  [[nodiscard]] bool before(const Cursor& other) const {
    return page != other.page ? page < other.page : list > other.list;
  }
};

class Merge {
 public:
  Merge(std::span<const PageList> lists, unsigned key_shift, std::vector<std::uint64_t>& keys,
        std::vector<std::uint32_t>& groups)
      : lists_(lists), key_shift_(key_shift), keys_(keys), groups_(groups) {
    for (std::uint32_t list = 0; list < lists.size(); ++list) {
      if (!lists[list].keys.empty()) heap_.push_back({page(list, 0), list, 0});
    }
    const auto after = [](const Cursor& a, const Cursor& b) { return b.before(a); };
    std::make_heap(heap_.begin(), heap_.end(), after);
  }

  void run() {
    while (!heap_.empty()) {
      Cursor& top = heap_.front();
      if (top.page < unmerged_) {  // a newer list has it
        ++top.at;
      } else {
        take_stretch(top);
      }
      if (top.at < lists_[top.list].keys.size()) {
        top.page = page(top.list, top.at);
      } else {
        top = heap_.back();
        heap_.pop_back();
      }
      sift_down();
    }
  }

 private:
  [[nodiscard]] std::uint64_t page(std::uint32_t list, std::size_t at) const {
    return lists_[list].keys[at] >> key_shift_;
  }

  /// Everything up to the page at which another list comes in, but at least one.
  void take_stretch(Cursor& top) {
    const PageList& list = lists_[top.list];
    std::size_t end = top.at + 1;
    if (heap_.size() == 1) {
      end = list.keys.size();
    } else {
      const std::uint64_t limit =
          heap_.size() == 2 || heap_[1].before(heap_[2]) ? heap_[1].page : heap_[2].page;
      end = std::max(end, gallop(list.keys, top.at, limit));
    }
    unmerged_ = (list.keys[end - 1] >> key_shift_) + 1;
    if (end - top.at < kShort) {
      for (std::size_t i = top.at; i < end; ++i) {
        keys_.push_back(list.keys[i]);
        groups_.push_back(list.groups[i] + list.first_group);
      }
    } else {
      append(list, top.at, end);
    }
    top.at = end;
  }

  void append(const PageList& list, std::size_t begin, std::size_t end) {
    const auto at = [](auto span, std::size_t i) {
      return span.begin() + static_cast<std::ptrdiff_t>(i);
    };
    keys_.insert(keys_.end(), at(list.keys, begin), at(list.keys, end));
    const std::size_t old = groups_.size();
    groups_.insert(groups_.end(), at(list.groups, begin), at(list.groups, end));
    if (list.first_group == 0) return;
    for (std::size_t i = old; i < groups_.size(); ++i) groups_[i] += list.first_group;
  }

  /// The first place from `at` on whose page is `limit` or more.
  [[nodiscard]] std::size_t gallop(std::span<const std::uint64_t> keys, std::size_t at,
                                   std::uint64_t limit) const {
    std::size_t step = 1;
    std::size_t low = at;
    while (at + step < keys.size() && (keys[at + step] >> key_shift_) < limit) {
      low = at + step;
      step *= 2;
    }
    const std::size_t high = std::min(at + step, keys.size());
    const auto found =
        std::partition_point(keys.begin() + static_cast<std::ptrdiff_t>(low),
                             keys.begin() + static_cast<std::ptrdiff_t>(high),
                             [&](std::uint64_t key) { return (key >> key_shift_) < limit; });
    return static_cast<std::size_t>(found - keys.begin());
  }

  void sift_down() {
    if (heap_.empty()) return;
    const Cursor moved = heap_.front();
    std::size_t hole = 0;
    for (std::size_t child = 1; child < heap_.size(); child = 2 * hole + 1) {
      if (child + 1 < heap_.size() && heap_[child + 1].before(heap_[child])) ++child;
      if (!heap_[child].before(moved)) break;
      heap_[hole] = heap_[child];
      hole = child;
    }
    heap_[hole] = moved;
  }

  static constexpr std::size_t kShort = 16;
  const std::span<const PageList> lists_;
  const unsigned key_shift_;
  std::vector<std::uint64_t>& keys_;
  std::vector<std::uint32_t>& groups_;
  std::vector<Cursor> heap_;
  std::uint64_t unmerged_ = 0;  ///< pages below are done
};

}  // namespace

void merge_newest(std::span<const PageList> oldest_to_newest, unsigned key_shift,
                  std::vector<std::uint64_t>& keys, std::vector<std::uint32_t>& groups) {
  std::size_t most = 0;
  for (const PageList& list : oldest_to_newest) most += list.keys.size();
  keys.reserve(keys.size() + most);
  groups.reserve(groups.size() + most);
  Merge(oldest_to_newest, key_shift, keys, groups).run();
}

}  // namespace vmshadow::store
