// What encryption at rest adds to an epoch's way through the store: sealing and opening a group of
// pages, as large as lz4 leaves it and as large as it can be.
#include <benchmark/benchmark.h>

#include <random>
#include <vector>

#include "crypt/sealed_record.h"
#include "format/sealed_record.h"

namespace {

using namespace vmshadow;

const crypt::VmKeys& bench_keys() {
  static const crypt::VmKeys made = [] {
    const std::vector<std::byte> bytes(crypt::kKeyBytes, std::byte{1});
    const auto secret = crypt::SecretKey::copy_of(ByteSpan(bytes).first<crypt::kKeyBytes>());
    crypt::VmKeys all;
    all.push_back(*crypt::VmKey::derive(*secret, vm_id("web1")));
    return all;
  }();
  return made;
}

std::vector<std::byte> body_of(std::size_t bytes) {
  std::mt19937_64 random(1);
  std::vector<std::byte> body(bytes);
  for (std::byte& byte : body) byte = static_cast<std::byte>(random());
  return body;
}

constexpr format::RecordHead kHead{format::RecordType::device_state, 0, {}, {}, {}};

void BM_Seal(benchmark::State& state) {
  const auto body = body_of(static_cast<std::size_t>(state.range(0)));
  std::vector<std::byte> record;
  for (auto _ : state) {
    record.clear();
    crypt::seal_record(bench_keys().front(), *crypt::random_nonce(), kHead, body, record);
    benchmark::DoNotOptimize(record.data());
  }
  state.SetBytesProcessed(state.iterations() * state.range(0));
}
BENCHMARK(BM_Seal)->Arg(1 << 10)->Arg(28 << 10)->Arg(64 << 10);

void BM_Open(benchmark::State& state) {
  const auto body = body_of(static_cast<std::size_t>(state.range(0)));
  std::vector<std::byte> record;
  crypt::seal_record(bench_keys().front(), *crypt::random_nonce(), kHead, body, record);
  const auto prefix = format::decode_prefix(record);
  std::vector<std::byte> plain;
  for (auto _ : state) {
    const auto opened = crypt::open_record(
        bench_keys(), *prefix, ByteSpan(record).subspan(format::kRecordPrefixBytes), plain);
    if (!opened) state.SkipWithError("it does not open");
  }
  state.SetBytesProcessed(state.iterations() * state.range(0));
}
BENCHMARK(BM_Open)->Arg(1 << 10)->Arg(28 << 10)->Arg(64 << 10);

}  // namespace

BENCHMARK_MAIN();
