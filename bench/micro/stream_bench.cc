// How fast the migration stream parser goes over bytes that are already in memory, in the chunks
// the drain reads: pages by name, pages by CONTINUE, zero pages.
#include <benchmark/benchmark.h>

#include <string>
#include <vector>

#include "capture/migration_stream.h"
#include "support/migration_stream_builder.h"

namespace vmshadow {
namespace {

using capture::MigrationStream;
using Event = MigrationStream::Event;

constexpr std::size_t kPages = 16384;
constexpr std::size_t kChunkBytes = std::size_t{1} << 20;

enum Shape { kNamed, kContinued, kZeroPages };

test::MigrationStreamBuilder checkpoint(int shape) {
  test::MigrationStreamBuilder b;
  b.message(1).message(3).part();
  for (std::size_t page = 0; page < kPages; ++page) {
    const char* block = shape == kContinued && page > 0 ? "" : "pc.ram";
    if (shape == kZeroPages) {
      b.zero(block, page * kPageBytes);
    } else {
      b.page(block, page * kPageBytes, 1);
    }
  }
  b.eos().footer().u8(0).message(4).b64(2).u8(4).u8(0);
  return b;
}

void parse_checkpoint(benchmark::State& state) {
  MigrationStream stream;
  std::vector<PageRef> pages;
  pages.reserve(kPages + 1);
  test::MigrationStreamBuilder first;
  first.header().configuration().ram_start({{"pc.ram", kPages * kPageBytes}}).end().eos().footer();
  first.u8(4).u8(0);
  std::size_t at = 0;
  while (at < first.bytes.size()) {
    at += stream.parse(ByteSpan(first.bytes).subspan(at), pages)->consumed;
  }
  if (!stream.end_initial()) return state.SkipWithError("no first pass");

  const auto bytes = checkpoint(static_cast<int>(state.range(0))).bytes;
  for (auto _ : state) {
    std::size_t taken = 0;
    std::size_t given = 0;
    while (taken < bytes.size()) {
      const auto step = stream.parse(ByteSpan(bytes).subspan(taken, given - taken), pages);
      if (!step) return state.SkipWithError(step.error().message.c_str());
      taken += step->consumed;
      if (step->event == Event::need_more) given = std::min(bytes.size(), given + kChunkBytes);
      if (pages.size() * kPageBytes >= kChunkBytes) pages.clear();
    }
    pages.clear();
    benchmark::DoNotOptimize(stream.take_device_state());
  }
  state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations() * bytes.size()));
  state.SetItemsProcessed(static_cast<std::int64_t>(state.iterations() * kPages));
}
BENCHMARK(parse_checkpoint)->Arg(kNamed)->Arg(kContinued)->Arg(kZeroPages)->ArgName("shape");

}  // namespace
}  // namespace vmshadow
BENCHMARK_MAIN();
