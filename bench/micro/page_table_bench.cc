// What the store's index costs a page: building a table, looking up, merging, resolving a chain.

#include <benchmark/benchmark.h>

#include <algorithm>
#include <random>

#include "store/resolved_pages.h"
#include "store/retention.h"
#include "store/table_merge.h"

namespace vmshadow::store {
namespace {

constexpr std::size_t kGroup = format::kGroupPagesMax;

/// A table of these pages (rising), in groups of 16, with made-up places.
EpochIndexPtr make_epoch(const std::vector<std::uint64_t>& pages, std::uint64_t epoch) {
  auto index = std::make_shared<EpochIndex>();
  PageTable::Builder builder;
  for (std::size_t i = 0; i < pages.size(); i += kGroup) {
    format::PageGroup group;
    for (std::size_t j = i; j < std::min(i + kGroup, pages.size()); ++j) {
      group.keys[group.page_count++] = {BlockIndex{0}, PageNumber{pages[j]}};
    }
    const auto number = static_cast<std::uint32_t>(i / kGroup);
    builder.add_group(number, number, group);
    index->places.groups.push_back(
        RecordPlace::at({SegmentId{1 + epoch}, SegmentOffset{std::uint64_t{number} * 30'000}},
                        29'000, Epoch{epoch}, group.page_count));
  }
  index->pages = builder.finish();
  return index;
}

std::vector<std::uint64_t> all_pages(std::size_t count) {
  std::vector<std::uint64_t> pages(count);
  for (std::size_t i = 0; i < count; ++i) pages[i] = i;
  return pages;
}

std::vector<std::uint64_t> some_pages(std::size_t count, std::uint64_t below, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::uint64_t> pages(count);
  for (std::uint64_t& page : pages) page = random() % below;
  std::sort(pages.begin(), pages.end());
  pages.erase(std::unique(pages.begin(), pages.end()), pages.end());
  return pages;
}

void count_pages(benchmark::State& state, std::size_t pages) {
  state.SetItemsProcessed(state.iterations() * static_cast<std::int64_t>(pages));
}

/// range(0): pages; range(1): in how many passes they come.
void build_table(benchmark::State& state) {
  const auto count = static_cast<std::size_t>(state.range(0));
  const auto passes = static_cast<std::size_t>(state.range(1));
  for (auto _ : state) {
    state.PauseTiming();
    PageTable::Builder builder;
    std::uint32_t number = 0;
    for (std::size_t pass = 0; pass < passes; ++pass) {
      for (std::size_t i = 0; i + kGroup * passes <= count; i += kGroup * passes) {
        format::PageGroup group;
        for (; group.page_count < kGroup; ++group.page_count) {
          group.keys[group.page_count] = {BlockIndex{0},
                                          PageNumber{i + pass + group.page_count * passes}};
        }
        builder.add_group(number, number, group);
        ++number;
      }
    }
    state.ResumeTiming();
    benchmark::DoNotOptimize(builder.finish());
  }
  count_pages(state, count);
}
BENCHMARK(build_table)->Args({1 << 20, 1})->Args({1 << 20, 4})->Unit(benchmark::kMillisecond);

/// A full epoch of range(0) pages and range(1) epochs of range(2) each.
std::vector<EpochIndexPtr> make_chain(const benchmark::State& state) {
  const auto count = static_cast<std::size_t>(state.range(0));
  std::vector<EpochIndexPtr> chain = {make_epoch(all_pages(count), 0)};
  for (std::int64_t i = 0; i < state.range(1); ++i) {
    const auto seed = static_cast<std::uint64_t>(i + 1);
    chain.push_back(
        make_epoch(some_pages(static_cast<std::size_t>(state.range(2)), count, seed), seed));
  }
  return chain;
}

void merge_chain(benchmark::State& state) {
  const auto chain = make_chain(state);
  std::vector<TableRef> tables;
  std::size_t entries = 0;
  for (const EpochIndexPtr& epoch : chain) {
    tables.push_back({&epoch->pages, epoch->places.groups});
    entries += epoch->pages.data_pages();
  }
  for (auto _ : state) benchmark::DoNotOptimize(merge_tables(tables));
  count_pages(state, entries);
}
BENCHMARK(merge_chain)
    ->Args({1 << 20, 1, 1'000})
    ->Args({1 << 20, 60, 1'000})
    ->Args({1 << 20, 1'000, 1'000})
    ->Args({1'000, 60, 1'000})
    ->Unit(benchmark::kMillisecond);

void look_up(benchmark::State& state) {
  const auto chain = make_chain(state);
  const ResolvedPages resolved(chain, 1);
  std::mt19937_64 random(1);
  for (auto _ : state) {
    const std::uint64_t page = random() % static_cast<std::uint64_t>(state.range(0));
    benchmark::DoNotOptimize(resolved.find({BlockIndex{0}, PageNumber{page}}));
  }
  count_pages(state, 1);
}
BENCHMARK(look_up)->Args({1 << 20, 0, 0})->Args({1 << 20, 100, 1'000});

void relocate(benchmark::State& state) {
  const auto count = static_cast<std::size_t>(state.range(0));
  const EpochIndexPtr epoch = make_epoch(all_pages(count), 0);
  const std::vector<RecordPlace> to = {RecordPlace::at({}, 1, Epoch{}, 16)};
  std::vector<PageTable::Move> moves;
  for (std::uint64_t page = 0; page < count; page += 10) {
    moves.push_back({{BlockIndex{0}, PageNumber{page}}, {0, 0}});
  }
  for (auto _ : state) {
    benchmark::DoNotOptimize(relocate_pages({&epoch->pages, epoch->places.groups}, moves, to));
  }
  count_pages(state, count);
}
BENCHMARK(relocate)->Arg(1 << 20)->Unit(benchmark::kMillisecond);

void thin(benchmark::State& state) {
  std::vector<DatedEpoch> epochs;
  for (std::uint64_t i = 0; i < static_cast<std::uint64_t>(state.range(0)); ++i) {
    epochs.push_back({Epoch{i}, WallTime{static_cast<std::int64_t>(i) * 1'000'000'000}});
  }
  for (auto _ : state) benchmark::DoNotOptimize(epochs_to_drop(epochs, {}, {}));
  count_pages(state, epochs.size());
}
BENCHMARK(thin)->Arg(100'000)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace vmshadow::store

BENCHMARK_MAIN();
