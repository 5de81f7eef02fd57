// How fast the delta encoder is against lz4 alone, as one ratio measured in one run: the two take
// turns on the same pages, on one core, and the median over all pairs is reported.
//
// The baseline is LZ4_compress_default on the same pages in the same 64 KiB blocks into a buffer
// that stays in cache: no headers, hashes, checksums or appending. Each round encodes pages that
// all changed since the round before, so nothing is saved by dropping them.
#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <lz4.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <string>
#include <vector>

#include "base/assert.h"
#include "delta/epoch_encoder.h"
#include "support/page_corpus.h"

namespace vmshadow::bench {
namespace {

constexpr std::size_t kBlockBytes = format::kGroupPagesMax * kPageBytes;
using Seconds = std::chrono::duration<double>;

struct Options {
  std::size_t pairs = 31;
  std::size_t pages = 4096;
  std::string kind = "realistic";
  bool json = false;
};

struct Report {
  double encode_vs_lz4{};
  double delta_mb_per_s{};
  double lz4_mb_per_s{};
  double delta_ratio{};
  double lz4_ratio{};
};

template <class Work>
Seconds timed(const Work& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::steady_clock::now() - start;
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

std::size_t compress_plain(ByteSpan pages, std::vector<char>& scratch) {
  std::size_t total = 0;
  for (std::size_t at = 0; at < pages.size(); at += kBlockBytes) {
    const ByteSpan block = pages.subspan(at, std::min(kBlockBytes, pages.size() - at));
    const int written =
        LZ4_compress_default(reinterpret_cast<const char*>(block.data()), scratch.data(),
                             static_cast<int>(block.size()), static_cast<int>(scratch.size()));
    VMSHADOW_ASSERT(written > 0);
    total += static_cast<std::size_t>(written);
  }
  return total;
}

Report measure(const Options& options, PageKind kind) {
  // Two versions of every page, encoded in turn: each round changes them all.
  const PageCorpus versions[] = {{kind, options.pages, 1}, {kind, options.pages, 2}};
  const PageBatch batches[] = {versions[0].batch(), versions[1].batch()};
  const MachineDescription machine = machine_with_pages(options.pages);
  delta::EpochEncoder encoder(PageHasher::create().value(), vm_id("bench"), Generation{1});
  std::vector<std::byte> records;
  std::vector<char> scratch(static_cast<std::size_t>(LZ4_compressBound(kBlockBytes)));

  std::size_t record_bytes = 0;
  std::uint64_t epoch = 0;
  const auto encode = [&] {
    records.clear();
    const bool full = epoch == 0;
    encoder.begin({Epoch{epoch}, full, full ? &machine : nullptr}, records);
    encoder.add(batches[epoch % 2], records);
    EpochEnd end;
    end.epoch = Epoch{epoch};
    end.device_state.assign(1, std::byte{0});
    const delta::EncodeStats stats = encoder.end(end, records);
    VMSHADOW_ASSERT(stats.data_pages == options.pages);
    record_bytes = records.size();
    ++epoch;
  };
  std::size_t lz4_bytes = 0;
  const auto compress = [&](std::uint64_t version) {
    lz4_bytes = compress_plain(versions[version % 2].bytes(), scratch);
  };
  encode();  // both warm up: memory is mapped, the clock has risen
  compress(0);

  std::vector<double> ratios;
  std::vector<double> delta_seconds;
  std::vector<double> lz4_seconds;
  for (std::size_t pair = 0; pair < options.pairs; ++pair) {
    const std::uint64_t version = epoch;
    Seconds delta_time{};
    Seconds lz4_time{};
    if (pair % 2 == 0) {
      delta_time = timed(encode);
      lz4_time = timed([&] { compress(version); });
    } else {
      lz4_time = timed([&] { compress(version); });
      delta_time = timed(encode);
    }
    ratios.push_back(lz4_time / delta_time);
    delta_seconds.push_back(delta_time.count());
    lz4_seconds.push_back(lz4_time.count());
  }
  const auto raw = static_cast<double>(options.pages * kPageBytes);
  return Report{median(ratios), raw / 1e6 / median(delta_seconds), raw / 1e6 / median(lz4_seconds),
                raw / static_cast<double>(record_bytes), raw / static_cast<double>(lz4_bytes)};
}

void print(const Options& options, const Report& report) {
  if (options.json) {
    fmt::print(
        "{{\"encode_vs_lz4\": {:.3f}, \"pairs\": {}, \"mb_per_s\": {{\"delta\": {:.0f}, \"lz4\": "
        "{:.0f}}}, \"compression\": {{\"delta\": {:.2f}, \"lz4\": {:.2f}}}, \"pages\": {}, "
        "\"page_kind\": \"{}\", \"baseline\": \"LZ4_compress_default, same pages, {} KiB "
        "blocks\"}}\n",
        report.encode_vs_lz4, options.pairs, report.delta_mb_per_s, report.lz4_mb_per_s,
        report.delta_ratio, report.lz4_ratio, options.pages, options.kind, kBlockBytes / 1024);
    return;
  }
  fmt::print(
      "delta encode: {:.0f} MB/s, {:.2f}:1\nlz4 alone:    {:.0f} MB/s, {:.2f}:1 "
      "(LZ4_compress_default, same {} {} pages, {} KiB blocks)\n"
      "delta runs at {:.3f} of lz4's speed (median of {} interleaved pairs)\n",
      report.delta_mb_per_s, report.delta_ratio, report.lz4_mb_per_s, report.lz4_ratio,
      options.pages, options.kind, kBlockBytes / 1024, report.encode_vs_lz4, options.pairs);
}

}  // namespace
}  // namespace vmshadow::bench

int main(int argc, char** argv) {
  using namespace vmshadow::bench;
  Options options;
  CLI::App app{"Speed of the delta encoder relative to lz4 alone, on the same pages, in one run."};
  app.add_option("--pairs", options.pairs, "interleaved measurements of each")
      ->check(CLI::Range(1, 10000))
      ->capture_default_str();
  app.add_option("--pages", options.pages, "4 KiB pages per measurement")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--kind", options.kind, "what the pages hold")
      ->check(CLI::IsMember({"realistic", "compressible", "random"}))
      ->capture_default_str();
  app.add_flag("--json", options.json, "one line of JSON instead of text");
  CLI11_PARSE(app, argc, argv);
  print(options, measure(options, *parse_page_kind(options.kind)));
  return 0;
}
