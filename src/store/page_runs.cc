#include "store/page_runs.h"

#include <algorithm>
#include <queue>

namespace vmshadow::store {

namespace {

void append_ranked(std::vector<RankedRun>& flat, std::uint64_t first, std::uint64_t end,
                   std::uint32_t rank) {
  if (!flat.empty() && flat.back().rank == rank && flat.back().run.end() == first) {
    flat.back().run.count += end - first;
  } else {
    flat.push_back({{first, end - first}, rank});
  }
}

void append_run(std::vector<PageRun>& runs, std::uint64_t first, std::uint64_t end,
                std::uint64_t block_pages) {
  if (first == end) return;
  if (!runs.empty() && runs.back().end() == first &&
      runs.back().first / block_pages == first / block_pages) {
    runs.back().count += end - first;
  } else {
    runs.push_back({first, end - first});
  }
}

}  // namespace

std::vector<RankedRun> flatten(std::vector<RankedRun> runs) {
  const auto starts_earlier = [](const RankedRun& a, const RankedRun& b) {
    return a.run.first < b.run.first;
  };
  if (!std::is_sorted(runs.begin(), runs.end(), starts_earlier)) {
    std::sort(runs.begin(), runs.end(), starts_earlier);
  }
  if (std::adjacent_find(runs.begin(), runs.end(), [](const RankedRun& a, const RankedRun& b) {
        return a.run.end() > b.run.first;
      }) == runs.end()) {
    return runs;
  }
  // Sweeps over the starts, the highest of the runs that cover the place on top.
  const auto lower = [](const RankedRun* a, const RankedRun* b) { return a->rank < b->rank; };
  std::priority_queue<const RankedRun*, std::vector<const RankedRun*>, decltype(lower)> covering(
      lower);
  std::vector<RankedRun> flat;
  flat.reserve(runs.size());
  std::uint64_t place = 0;
  for (std::size_t next = 0; next < runs.size() || !covering.empty();) {
    if (covering.empty()) place = runs[next].run.first;
    for (; next < runs.size() && runs[next].run.first <= place; ++next) covering.push(&runs[next]);
    const RankedRun& top = *covering.top();
    if (top.run.end() <= place) {
      covering.pop();
      continue;
    }
    std::uint64_t end = top.run.end();
    if (next < runs.size()) end = std::min(end, runs[next].run.first);
    append_ranked(flat, place, end, top.rank);
    place = end;
  }
  return flat;
}

std::vector<PageRun> subtract(std::span<const RankedRun> flat, std::span<const std::uint64_t> keys,
                              unsigned key_shift, std::uint64_t block_pages) {
  std::vector<PageRun> left;
  left.reserve(flat.size());
  auto key = keys.begin();
  for (const RankedRun& ranked : flat) {
    std::uint64_t place = ranked.run.first;
    const std::uint64_t end = ranked.run.end();
    key = std::lower_bound(key, keys.end(), place << key_shift);
    for (; key != keys.end() && (*key >> key_shift) < end; ++key) {
      append_run(left, place, *key >> key_shift, block_pages);
      place = (*key >> key_shift) + 1;
    }
    append_run(left, place, end, block_pages);
  }
  return left;
}

}  // namespace vmshadow::store
