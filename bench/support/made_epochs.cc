#include "support/made_epochs.h"

#include <algorithm>
#include <cstring>

#include "base/assert.h"
#include "delta/page_group_codec.h"
#include "format/record.h"

namespace vmshadow::bench {
namespace {

using format::kGroupPagesMax;
using format::RecordType;

constexpr std::size_t kDeviceBytes = 4096;

/// Pages that lz4 makes about 200 bytes of.
std::vector<std::byte> small_pages(std::size_t pages, std::uint64_t seed) {
  std::vector<std::byte> bytes(pages * kPageBytes);
  std::mt19937_64 random(seed);
  for (std::size_t page = 0; page < pages; ++page) {
    for (std::size_t at = 0; at < 192; at += 8) {
      const std::uint64_t word = random();
      std::memcpy(bytes.data() + page * kPageBytes + at, &word, sizeof word);
    }
  }
  return bytes;
}

void set_keys(std::span<std::byte> body, std::span<const std::uint64_t> pages) {
  std::byte* at = body.data() + sizeof(format::PageGroupHeadBytes);
  for (const std::uint64_t page : pages) {
    const le64 key(format::PageKey{BlockIndex{0}, PageNumber{page}}.packed());
    std::memcpy(at, &key, sizeof key);
    at += sizeof key;
  }
}

/// Adds records to an epoch and keeps its sums.
class EpochAssembler {
 public:
  explicit EpochAssembler(const EpochLabel& label)
      : head_{RecordType::machine, 0, label.vm, label.generation, label.epoch} {}

  void add(RecordType type, ByteSpan body) {
    const std::size_t start = begin(type);
    format::append_bytes(made_.bytes, body);
    end(start);
  }
  void add_group(ByteSpan body, std::span<const std::uint64_t> pages) {
    const std::size_t start = begin(RecordType::page_group);
    format::append_bytes(made_.bytes, body);
    set_keys(std::span(made_.bytes).subspan(start + format::kRecordPrefixBytes), pages);
    end(start);
    summary_.stored_pages += pages.size();
  }
  /// A full epoch holds every page: those that nothing follows for are zero.
  void add_zero_blocks(const MachineDescription& machine) {
    std::vector<format::ZeroRun> runs;
    for (std::size_t i = 0; i < machine.layout.blocks.size(); ++i) {
      const std::uint64_t pages = machine.layout.blocks[i].pages();
      runs.push_back({{BlockIndex{static_cast<std::uint16_t>(i)}, PageNumber{0}}, pages});
      summary_.stored_pages += pages;
      summary_.zero_pages += pages;
    }
    const std::size_t start = begin(RecordType::zero_pages);
    format::append_zero_pages_body(made_.bytes, runs);
    end(start);
  }
  MadeEpoch finish(bool full) {
    summary_.full = full;
    summary_.device_bytes = kDeviceBytes;
    summary_.captured_pages = summary_.stored_pages;
    summary_.cut_wall = WallTime{static_cast<std::int64_t>(head_.epoch.value)};
    made_.pages = summary_.stored_pages - summary_.zero_pages;
    const format::EpochSummary summary = summary_;
    const std::size_t start = begin(RecordType::epoch_end);
    format::append_epoch_end_body(made_.bytes, summary);
    end(start);
    return std::move(made_);
  }
  void reserve(std::size_t bytes) { made_.bytes.reserve(bytes); }

 private:
  std::size_t begin(RecordType type) {
    head_.type = type;
    head_.sequence = summary_.record_count++;
    return format::begin_record(made_.bytes);
  }
  void end(std::size_t start) {
    summary_.chain =
        format::extend_chain(summary_.chain, format::finish_record(made_.bytes, start, head_));
    summary_.record_bytes += made_.bytes.size() - start;
    made_.ends.push_back(made_.bytes.size());
  }

  format::RecordHead head_;
  format::EpochSummary summary_;
  MadeEpoch made_;
};

}  // namespace

GroupPool::GroupPool(Fill fill, std::size_t groups, std::uint64_t seed) {
  const std::size_t pages = groups * kGroupPagesMax;
  if (fill == Fill::realistic) {
    const PageCorpus corpus(PageKind::realistic, pages, seed);
    pages_.assign(corpus.bytes().begin(), corpus.bytes().end());
  } else {
    pages_ = small_pages(pages, seed);
  }
  std::vector<format::PageKey> keys;
  for (std::size_t i = 0; i < kGroupPagesMax; ++i) keys.push_back({BlockIndex{0}, PageNumber{i}});
  delta::PageGroupEncoder encoder;
  bodies_.resize(groups);
  for (std::size_t group = 0; group < groups; ++group) {
    encoder.append_body(bodies_[group], keys, page(group, 0).data());
  }
}

ByteSpan GroupPool::page(std::size_t group, std::size_t slot) const {
  return ByteSpan(pages_).subspan((group * kGroupPagesMax + slot) * kPageBytes, kPageBytes);
}

EpochPlan plan_pages(std::vector<std::uint64_t> pages, const GroupPool& pool,
                     std::mt19937_64& random) {
  VMSHADOW_ASSERT(!pages.empty() && pages.size() % kGroupPagesMax == 0);
  EpochPlan plan;
  plan.pages = std::move(pages);
  for (std::size_t i = 0; i < plan.pages.size(); i += kGroupPagesMax) {
    plan.groups.push_back(static_cast<std::uint32_t>(random() % pool.groups()));
  }
  return plan;
}

EpochPlan plan_uniform(std::size_t count, std::uint64_t of, const GroupPool& pool,
                       std::mt19937_64& random) {
  VMSHADOW_ASSERT(of % kGroupPagesMax == 0);
  const std::size_t whole = (count + kGroupPagesMax - 1) / kGroupPagesMax * kGroupPagesMax;
  const auto wanted = static_cast<std::size_t>(std::min<std::uint64_t>(whole, of));
  std::vector<std::uint64_t> pages;
  while (pages.size() < wanted) {
    while (pages.size() < wanted) pages.push_back(random() % of);
    std::sort(pages.begin(), pages.end());
    pages.erase(std::unique(pages.begin(), pages.end()), pages.end());
  }
  return plan_pages(std::move(pages), pool, random);
}

EpochPlan plan_all(std::uint64_t of, const GroupPool& pool, std::mt19937_64& random) {
  std::vector<std::uint64_t> pages(of);
  for (std::uint64_t i = 0; i < of; ++i) pages[i] = i;
  return plan_pages(std::move(pages), pool, random);
}

MadeEpoch make_epoch(const EpochLabel& label, const MachineDescription* machine,
                     const EpochPlan& plan, const GroupPool& pool) {
  EpochAssembler out(label);
  std::vector<std::byte> body;
  std::size_t bytes = std::size_t{16} << 10;
  for (const std::uint32_t group : plan.groups) {
    bytes += pool.body(group).size() + format::kRecordPrefixBytes;
  }
  out.reserve(bytes);
  if (machine != nullptr) {
    format::append_machine_body(body, *machine);
    out.add(RecordType::machine, body);
    out.add_zero_blocks(*machine);
  }
  for (std::size_t i = 0; i < plan.groups.size(); ++i) {
    out.add_group(pool.body(plan.groups[i]),
                  std::span(plan.pages).subspan(i * kGroupPagesMax, kGroupPagesMax));
  }
  body.assign(kDeviceBytes, static_cast<std::byte>(label.epoch.value));
  out.add(RecordType::device_state, body);
  return out.finish(machine != nullptr);
}

Result<CommitReceipt> ship(EpochSession& session, const MadeEpoch& epoch) {
  std::size_t start = 0;
  for (std::size_t i = 0; i + 1 < epoch.ends.size(); ++i) {
    VMSHADOW_TRY(session.append(ByteSpan(epoch.bytes).subspan(start, epoch.ends[i] - start)));
    start = epoch.ends[i];
  }
  return session.commit(ByteSpan(epoch.bytes).subspan(start));
}

}  // namespace vmshadow::bench
