// Each step of the delta stage by itself, next to plain lz4 on the same pages. For the ratio of the
// two use delta-vs-lz4, which interleaves them; the rows here are measured one after the other.
#include <benchmark/benchmark.h>
#include <lz4.h>

#include "delta/epoch_encoder.h"
#include "delta/page_group_codec.h"
#include "format/record.h"
#include "support/page_corpus.h"

namespace vmshadow::bench {
namespace {

constexpr std::size_t kPages = 2048;

PageKind kind_of(const benchmark::State& state) { return static_cast<PageKind>(state.range(0)); }

void finish(benchmark::State& state, std::size_t bytes_per_round) {
  state.SetBytesProcessed(
      static_cast<std::int64_t>(static_cast<std::size_t>(state.iterations()) * bytes_per_round));
  state.SetLabel(std::string(page_kind_name(kind_of(state))));
}

/// Encodes epochs in which every page changed.
void encode_epoch(benchmark::State& state) {
  const PageCorpus versions[] = {{kind_of(state), kPages, 1}, {kind_of(state), kPages, 2}};
  const PageBatch batches[] = {versions[0].batch(), versions[1].batch()};
  const MachineDescription machine = machine_with_pages(kPages);
  delta::EpochEncoder encoder(PageHasher::create().value(), vm_id("bench"), Generation{1});
  std::vector<std::byte> records;
  std::uint64_t epoch = 0;
  for (auto _ : state) {
    records.clear();
    encoder.begin({Epoch{epoch}, epoch == 0, epoch == 0 ? &machine : nullptr}, records);
    encoder.add(batches[epoch % 2], records);
    EpochEnd end;
    end.epoch = Epoch{epoch++};
    end.device_state.assign(1, std::byte{0});
    benchmark::DoNotOptimize(encoder.end(end, records));
  }
  finish(state, kPages * kPageBytes);
}

/// Encodes epochs in which no page changed: what a rescan costs.
void encode_unchanged(benchmark::State& state) {
  const PageCorpus corpus(kind_of(state), kPages, 1);
  const PageBatch batch = corpus.batch();
  const MachineDescription machine = machine_with_pages(kPages);
  delta::EpochEncoder encoder(PageHasher::create().value(), vm_id("bench"), Generation{1});
  std::vector<std::byte> records;
  std::uint64_t epoch = 0;
  const auto encode = [&] {
    records.clear();
    encoder.begin({Epoch{epoch}, epoch == 0, epoch == 0 ? &machine : nullptr}, records);
    encoder.add(batch, records);
    EpochEnd end;
    end.epoch = Epoch{epoch++};
    end.device_state.assign(1, std::byte{0});
    return encoder.end(end, records);
  };
  encode();
  for (auto _ : state) benchmark::DoNotOptimize(encode());
  finish(state, kPages * kPageBytes);
}

/// LZ4_compress_default on blocks of range(1) bytes: 64 KiB as the encoder's groups, or 4 KiB.
void plain_lz4(benchmark::State& state) {
  const PageCorpus corpus(kind_of(state), kPages, 1);
  const auto block = static_cast<std::size_t>(state.range(1));
  std::vector<char> scratch(static_cast<std::size_t>(LZ4_compressBound(static_cast<int>(block))));
  std::size_t compressed = 0;
  for (auto _ : state) {
    compressed = 0;
    for (std::size_t at = 0; at < corpus.bytes().size(); at += block) {
      compressed += static_cast<std::size_t>(LZ4_compress_default(
          reinterpret_cast<const char*>(corpus.bytes().data() + at), scratch.data(),
          static_cast<int>(block), static_cast<int>(scratch.size())));
    }
    benchmark::DoNotOptimize(compressed);
  }
  state.counters["ratio"] =
      static_cast<double>(corpus.bytes().size()) / static_cast<double>(compressed);
  finish(state, corpus.bytes().size());
}

void hash_pages(benchmark::State& state) {
  const PageCorpus corpus(PageKind::realistic, kPages, 1);
  const PageHasher hasher = PageHasher::create().value();
  for (auto _ : state) {
    for (std::size_t i = 0; i < kPages; ++i) {
      benchmark::DoNotOptimize(hasher.hash(corpus.bytes().data() + i * kPageBytes));
    }
  }
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(kPages * kPageBytes));
}

std::vector<std::byte> one_group(PageKind kind) {
  const PageCorpus corpus(kind, format::kGroupPagesMax, 1);
  std::vector<format::PageKey> keys;
  for (std::size_t i = 0; i < format::kGroupPagesMax; ++i) {
    keys.push_back({BlockIndex{0}, PageNumber{i}});
  }
  delta::PageGroupEncoder encoder;
  std::vector<std::byte> body;
  encoder.append_body(body, keys, corpus.bytes().data());
  return body;
}

void decode_group(benchmark::State& state) {
  const auto body = one_group(kind_of(state));
  std::vector<std::byte> pages(format::kGroupPagesMax * kPageBytes);
  for (auto _ : state) {
    const auto group = format::decode_page_group(body);
    const bool decoded = delta::decode_pages(*group, pages).has_value();
    benchmark::DoNotOptimize(decoded);
  }
  finish(state, pages.size());
}

/// One page on demand, from slot range(1) of a group.
void decode_one_page(benchmark::State& state) {
  const auto body = one_group(kind_of(state));
  std::vector<std::byte> page(kPageBytes);
  for (auto _ : state) {
    const auto group = format::decode_page_group(body);
    const bool decoded =
        delta::decode_page(*group, static_cast<std::size_t>(state.range(1)), page).has_value();
    benchmark::DoNotOptimize(decoded);
  }
  finish(state, page.size());
}

BENCHMARK(encode_epoch)->DenseRange(0, 2)->Unit(benchmark::kMillisecond);
BENCHMARK(encode_unchanged)->DenseRange(0, 0)->Unit(benchmark::kMillisecond);
BENCHMARK(plain_lz4)
    ->ArgsProduct({{0, 1, 2}, {64 * 1024, 4 * 1024}})
    ->Unit(benchmark::kMillisecond);
BENCHMARK(hash_pages)->Unit(benchmark::kMillisecond);
BENCHMARK(decode_group)->DenseRange(0, 2)->Unit(benchmark::kMicrosecond);
BENCHMARK(decode_one_page)->ArgsProduct({{0}, {0, 7, 15}})->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace vmshadow::bench

BENCHMARK_MAIN();
