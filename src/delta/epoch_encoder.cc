// What the encoder knows of a page of RAM is 16 bytes:
//
//   high == 0, low == 0        never seen since the last full epoch began
//   high == 0, low == batch    zero; `batch` numbers the zero runs it was gathered in
//   high != 0                  the keyed hash of its bytes
//
// The batch number answers at once whether a page still waits in the open runs. Invariant: a page
// waits in at most one place, the open group or the open runs, and only once. Of a disk's pages
// none waits from one batch to the next.
#include "delta/epoch_encoder.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <span>
#include <utility>

#include "base/assert.h"
#include "delta/page_group_codec.h"
#include "format/record.h"

namespace vmshadow::delta {
namespace {

using format::PageKey;
using format::RecordType;
using format::ZeroRun;

constexpr std::uint64_t kFirstZeroBatch = 1;

/// Whether all kPageBytes bytes are 0. Nearly every other page says so in its first 64 bytes.
bool is_zero_page(const std::byte* page) {
  constexpr std::size_t kStrideBytes = 64;
  for (std::size_t at = 0; at < kPageBytes; at += kStrideBytes) {
    std::array<std::uint64_t, kStrideBytes / sizeof(std::uint64_t)> words;
    std::memcpy(words.data(), page + at, kStrideBytes);
    std::uint64_t any = 0;
    for (const std::uint64_t word : words) any |= word;
    if (any != 0) return false;
  }
  return true;
}

/// Sorts runs that do not overlap, and joins those that touch.
void merge_runs(std::vector<ZeroRun>& runs) {
  std::sort(runs.begin(), runs.end(),
            [](const ZeroRun& a, const ZeroRun& b) { return a.first < b.first; });
  std::size_t kept = 0;
  for (std::size_t i = 1; i < runs.size(); ++i) {
    ZeroRun& last = runs[kept];
    if (runs[i].first.block == last.first.block &&
        runs[i].first.page.value == last.first.page.value + last.count) {
      last.count += runs[i].count;
    } else {
      runs[++kept] = runs[i];
    }
  }
  if (!runs.empty()) runs.resize(kept + 1);
}

}  // namespace

struct EpochEncoder::State {
  State(PageHasher page_hasher, VmId vm_id, Generation vm_generation,
        std::optional<KnownEpoch> known_epoch)
      : hasher(page_hasher), vm(vm_id), generation(vm_generation), base(std::move(known_epoch)) {}

  // Constant.
  PageHasher hasher;
  VmId vm;

  Generation generation;           ///< the records' label; constant from the first epoch on
  std::optional<KnownEpoch> base;  ///< until the first epoch begins

  // Since the last full epoch began.
  std::vector<std::vector<PageHash>> known;  ///< by RAM block and page
  std::vector<std::uint64_t> disk_pages;     ///< of the blocks behind those
  std::uint64_t zero_batch = kFirstZeroBatch;

  // Of the open epoch.
  bool open = false;
  bool full = false;
  Epoch epoch;
  std::uint32_t sequence = 0;
  std::uint64_t chain = 0;
  EncodeStats stats;

  // What waits to become a record.
  PageGroupEncoder group_encoder;
  std::array<PageKey, format::kGroupPagesMax> group_keys;
  std::size_t group_pages = 0;
  alignas(64) std::array<std::byte, format::kGroupPagesMax * kPageBytes> group_bytes;
  std::vector<ZeroRun> zero_runs;

  /// Appends one record whose body `append_body(out)` writes in place.
  template <class AppendBody>
  void append_record(std::vector<std::byte>& out, RecordType type, const AppendBody& append_body) {
    const std::size_t start = format::begin_record(out);
    append_body(out);
    const std::uint64_t sum =
        format::finish_record(out, start, {type, sequence, vm, generation, epoch});
    chain = format::extend_chain(chain, sum);
    ++sequence;
    stats.record_bytes += out.size() - start;
  }

  void flush_group(std::vector<std::byte>& out) {
    if (group_pages == 0) return;
    append_record(out, RecordType::page_group, [&](std::vector<std::byte>& into) {
      group_encoder.append_body(into, std::span(group_keys).first(group_pages), group_bytes.data());
    });
    group_pages = 0;
  }

  void flush_zero_runs(std::vector<std::byte>& out) {
    if (zero_runs.empty()) return;
    merge_runs(zero_runs);
    append_record(out, RecordType::zero_pages, [&](std::vector<std::byte>& into) {
      format::append_zero_pages_body(into, zero_runs);
    });
    zero_runs.clear();
    ++zero_batch;
  }

  [[nodiscard]] bool waits_in_group(PageKey key) const {
    const auto end = group_keys.begin() + static_cast<std::ptrdiff_t>(group_pages);
    return std::find(group_keys.begin(), end, key) != end;
  }

  void add_zero(PageKey key, PageHash& state, std::vector<std::byte>& out) {
    if (state.high == 0 && state.low != 0) {
      ++stats.unchanged_pages;
      return;
    }
    if (waits_in_group(key)) flush_group(out);
    if (!zero_runs.empty() && zero_runs.back().first.block == key.block &&
        zero_runs.back().first.page.value + zero_runs.back().count == key.page.value) {
      ++zero_runs.back().count;
    } else {
      if (zero_runs.size() == format::kZeroRunsMax) flush_zero_runs(out);
      zero_runs.push_back({key, 1});
    }
    state = PageHash{zero_batch, 0};
    ++stats.zero_pages;
  }

  [[nodiscard]] bool is_inside(BlockIndex block, PageNumber first, std::uint64_t count) const {
    const std::size_t disk = block.value - known.size();
    return block.value >= known.size() && disk < disk_pages.size() && count <= disk_pages[disk] &&
           first.value <= disk_pages[disk] - count;
  }

  void add_zero_disk_pages(const ZeroDiskPages& zeros, std::vector<std::byte>& out) {
    VMSHADOW_ASSERT(is_inside(zeros.block, zeros.first, zeros.count));
    if (zero_runs.size() == format::kZeroRunsMax) flush_zero_runs(out);
    zero_runs.push_back({{zeros.block, zeros.first}, zeros.count});
    stats.zero_pages += zeros.count;
  }

  void add_disk_page(const PageRef& ref, std::vector<std::byte>& out) {
    if (ref.data == nullptr || is_zero_page(ref.data)) {
      add_zero_disk_pages({ref.block, ref.page, 1}, out);
      return;
    }
    VMSHADOW_ASSERT(is_inside(ref.block, ref.page, 1));
    gather({ref.block, ref.page}, ref.data, out);
  }

  /// Goes on from the base if `machine` is its machine. What is known is then all of its pages.
  bool build_on_base(const MachineDescription& machine) {
    const std::optional<KnownEpoch> from = std::exchange(base, std::nullopt);
    if (!from || from->machine != machine) return false;
    generation = from->generation;
    zero_batch = kFirstZeroBatch + 1;  // no zero page of the base waits in a run
    known.resize(from->hashes.size());
    for (std::size_t block = 0; block < known.size(); ++block) {
      const std::vector<PageHash>& hashes = from->hashes[block];
      VMSHADOW_ASSERT(hashes.size() == machine.layout.blocks[block].pages());
      known[block].resize(hashes.size());
      std::transform(hashes.begin(), hashes.end(), known[block].begin(), [](PageHash hash) {
        return hash == PageHash{} ? PageHash{kFirstZeroBatch, 0} : as_state(hash);
      });
    }
    return true;
  }

  /// A hash, kept clear of the two states that are none.
  static PageHash as_state(PageHash hash) {
    if (hash.high == 0) hash.high = 1;
    return hash;
  }

  void add_data(PageKey key, const std::byte* page, PageHash& state, std::vector<std::byte>& out) {
    const PageHash hash = as_state(hasher.hash(page));
    if (state == hash) {
      ++stats.unchanged_pages;
      return;
    }
    if (state.high == 0 && state.low == zero_batch) flush_zero_runs(out);
    if (waits_in_group(key)) flush_group(out);
    gather(key, page, out);
    state = hash;
  }

  void gather(PageKey key, const std::byte* page, std::vector<std::byte>& out) {
    group_keys[group_pages] = key;
    std::memcpy(group_bytes.data() + group_pages * kPageBytes, page, kPageBytes);
    ++group_pages;
    if (group_pages == format::kGroupPagesMax) flush_group(out);
    ++stats.data_pages;
  }
};

EpochEncoder::EpochEncoder(PageHasher hasher, VmId vm, Generation generation,
                           std::optional<KnownEpoch> known)
    : state_(std::make_unique<State>(hasher, vm, generation, std::move(known))) {}
EpochEncoder::~EpochEncoder() = default;
EpochEncoder::EpochEncoder(EpochEncoder&&) noexcept = default;
EpochEncoder& EpochEncoder::operator=(EpochEncoder&&) noexcept = default;

void EpochEncoder::set_acceleration(int acceleration) {
  state_->group_encoder.set_acceleration(acceleration);
}

void EpochEncoder::begin(const EpochBegin& begin, std::vector<std::byte>& out) {
  State& s = *state_;
  VMSHADOW_ASSERT(!s.open);
  VMSHADOW_ASSERT(begin.full || !s.known.empty());
  VMSHADOW_ASSERT(!begin.full || begin.machine != nullptr);
  s.open = true;
  s.full = begin.full && !s.build_on_base(*begin.machine);
  s.epoch = begin.epoch;
  s.sequence = 0;
  s.chain = 0;
  s.stats = {};
  s.stats.full = s.full;
  if (begin.full) {
    s.disk_pages.clear();
    for (const Disk& disk : begin.machine->disks) s.disk_pages.push_back(disk.pages());
  }
  if (!s.full) return;

  const std::vector<RamBlock>& blocks = begin.machine->layout.blocks;
  VMSHADOW_ASSERT(!blocks.empty());
  s.known.resize(blocks.size());
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    s.known[i].assign(blocks[i].pages(), PageHash{});
  }
  s.zero_batch = kFirstZeroBatch;
  s.append_record(out, RecordType::machine, [&](std::vector<std::byte>& into) {
    format::append_machine_body(into, *begin.machine);
  });
}

void EpochEncoder::add(const PageBatch& batch, std::vector<std::byte>& out) {
  State& s = *state_;
  VMSHADOW_ASSERT(s.open);
  s.stats.captured_pages += batch.pages.size();
  bool has_disk_pages = !batch.zero_disk_pages.empty();
  for (const PageRef& ref : batch.pages) {
    if (ref.block.value >= s.known.size()) {
      s.add_disk_page(ref, out);
      has_disk_pages = true;
      continue;
    }
    std::vector<PageHash>& known = s.known[ref.block.value];
    VMSHADOW_ASSERT(ref.page.value < known.size());
    const PageKey key{ref.block, ref.page};
    PageHash& state = known[ref.page.value];
    if (ref.data == nullptr || is_zero_page(ref.data)) {
      s.add_zero(key, state, out);
    } else {
      s.add_data(key, ref.data, state, out);
    }
  }
  for (const ZeroDiskPages& zeros : batch.zero_disk_pages) {
    s.stats.captured_pages += zeros.count;
    s.add_zero_disk_pages(zeros, out);
  }
  if (!has_disk_pages) return;
  s.flush_group(out);
  s.flush_zero_runs(out);
}

EncodeStats EpochEncoder::end(const EpochEnd& end, std::vector<std::byte>& out) {
  State& s = *state_;
  VMSHADOW_ASSERT(s.open && end.epoch == s.epoch);
  VMSHADOW_ASSERT(!end.device_state.empty());
  s.flush_group(out);
  s.flush_zero_runs(out);
  for (ByteSpan rest(end.device_state); !rest.empty();) {
    const ByteSpan piece = rest.first(std::min(rest.size(), format::kDeviceStatePieceBytes));
    s.append_record(out, RecordType::device_state,
                    [&](std::vector<std::byte>& into) { format::append_bytes(into, piece); });
    rest = rest.subspan(piece.size());
  }

  format::EpochSummary summary;
  summary.record_count = s.sequence;
  summary.full = s.full;
  summary.chain = s.chain;
  summary.cut_wall = end.cut_wall;
  summary.captured_pages = s.stats.captured_pages;
  summary.stored_pages = s.stats.zero_pages + s.stats.data_pages;
  summary.zero_pages = s.stats.zero_pages;
  summary.record_bytes = s.stats.record_bytes;
  summary.device_bytes = end.device_state.size();
  s.append_record(out, RecordType::epoch_end, [&](std::vector<std::byte>& into) {
    format::append_epoch_end_body(into, summary);
  });
  s.open = false;
  return s.stats;
}

void EpochEncoder::abandon() {
  State& s = *state_;
  s.open = false;
  s.group_pages = 0;
  s.zero_runs.clear();
  s.base.reset();
  s.disk_pages.clear();
  s.known.clear();  // what the far side holds is no longer what we noted
}

}  // namespace vmshadow::delta
