// A set of page numbers as runs: what a disk's whole-range commands name.
#pragma once

#include <cstdint>
#include <map>

namespace vmshadow::capture {

/// [first, end)
struct PageRange {
  std::uint64_t first{};
  std::uint64_t end{};
  [[nodiscard]] std::uint64_t pages() const { return end - first; }
  bool operator==(const PageRange&) const = default;
};

/// Costs follow the number of runs, not of pages: a logarithm of it, and what a call swallows.
class PageRanges {
 public:
  void add(PageRange range);
  void remove(PageRange range);
  [[nodiscard]] bool contains(std::uint64_t page) const;
  [[nodiscard]] bool empty() const { return ends_.empty(); }
  [[nodiscard]] std::uint64_t pages() const { return pages_; }
  [[nodiscard]] std::size_t runs() const { return ends_.size(); }

  /// visit(PageRange), in ascending order.
  template <class Visit>
  void for_each(const Visit& visit) const {
    for (const auto& [first, end] : ends_) visit(PageRange{first, end});
  }

 private:
  std::map<std::uint64_t, std::uint64_t> ends_;  // by first page; neither overlap nor touch
  std::uint64_t pages_ = 0;
};

}  // namespace vmshadow::capture
