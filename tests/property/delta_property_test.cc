// Random epochs through the encoder and back: whatever the order, duplicates and flips of the pages
// of an epoch, applying its records in order gives the RAM that a plain map of last versions gives.
#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include <cstring>
#include <deque>
#include <random>

#include "delta/epoch_encoder.h"
#include "support/epoch_records_reader.h"

namespace vmshadow::delta {
namespace {

using testing::decode_epoch;
using testing::Page;
using testing::PageMap;

constexpr std::size_t kBlockPages[] = {40, 9};

/// One page as captured: few places and few contents, so that they meet often.
struct Write {
  std::uint16_t block{};
  std::uint64_t page{};
  int content{};        ///< 0: zero
  bool zero_as_null{};  ///< how a zero page is handed over
};

std::ostream& operator<<(std::ostream& out, const Write& write) {
  return out << write.block << ":" << write.page << "=" << write.content
             << (write.zero_as_null ? "n" : "");
}

rc::Gen<Write> write_gen() {
  return rc::gen::mapcat(rc::gen::inRange(0, 2), [](int block) {
    return rc::gen::build<Write>(
        rc::gen::set(&Write::block, rc::gen::just(static_cast<std::uint16_t>(block))),
        rc::gen::set(&Write::page, rc::gen::inRange<std::uint64_t>(0, kBlockPages[block])),
        rc::gen::set(&Write::content, rc::gen::inRange(0, 5)),
        rc::gen::set(&Write::zero_as_null, rc::gen::arbitrary<bool>()));
  });
}

struct EpochPlan {
  bool full{};
  bool abandoned{};
  std::vector<Write> writes;
};

std::ostream& operator<<(std::ostream& out, const EpochPlan& plan) {
  out << (plan.full ? "full" : "delta") << (plan.abandoned ? " abandoned" : "") << " [";
  for (const Write& write : plan.writes) out << write << " ";
  return out << "]";
}

rc::Gen<EpochPlan> plan_gen() {
  return rc::gen::build<EpochPlan>(
      rc::gen::set(&EpochPlan::full,
                   rc::gen::map(rc::gen::inRange(0, 5), [](int dice) { return dice == 0; })),
      rc::gen::set(&EpochPlan::abandoned,
                   rc::gen::map(rc::gen::inRange(0, 6), [](int dice) { return dice == 0; })),
      rc::gen::set(&EpochPlan::writes, rc::gen::container<std::vector<Write>>(write_gen())));
}

Page content_page(int content) {
  Page page{};
  if (content == 0) return page;
  std::mt19937_64 random(static_cast<std::uint64_t>(content));
  // Odd contents compress, even ones do not.
  const std::size_t distinct = content % 2 == 1 ? 64 : kPageBytes;
  for (std::size_t i = 0; i < distinct; ++i) page[i] = static_cast<std::byte>(random());
  return page;
}

RC_GTEST_PROP(DeltaProperty, RecordsRebuildTheLastVersionOfEveryPage, ()) {
  const auto plans = *rc::gen::nonEmpty(rc::gen::container<std::vector<EpochPlan>>(plan_gen()));
  MachineDescription machine;
  machine.json = "{}";
  machine.layout.blocks = {{"a", kBlockPages[0] * kPageBytes}, {"b", kBlockPages[1] * kPageBytes}};
  std::vector<Page> contents;
  for (int content = 0; content < 5; ++content) contents.push_back(content_page(content));

  EpochEncoder encoder(PageHasher::create().value(), vm_id("p"), Generation{1});
  PageMap expected;
  PageMap decoded;
  bool must_be_full = true;
  std::uint64_t epoch = 0;
  for (const EpochPlan& plan : plans) {
    const bool full = plan.full || must_be_full;
    std::vector<std::byte> out;
    encoder.begin({Epoch{epoch}, full, full ? &machine : nullptr}, out);
    PageMap next = full ? PageMap{} : expected;
    PageBatch batch;
    for (const Write& write : plan.writes) {
      const auto& page = contents[static_cast<std::size_t>(write.content)];
      const bool null = write.content == 0 && write.zero_as_null;
      batch.pages.push_back(
          {BlockIndex{write.block}, PageNumber{write.page}, null ? nullptr : page.data()});
      next[{BlockIndex{write.block}, PageNumber{write.page}}] = page;
      if (batch.pages.size() == 7) {  // an epoch arrives in several batches
        encoder.add(batch, out);
        batch.pages.clear();
      }
    }
    encoder.add(batch, out);
    if (plan.abandoned) {
      encoder.abandon();
      must_be_full = true;
      continue;
    }
    EpochEnd end;
    end.epoch = Epoch{epoch};
    end.device_state.assign(epoch + 1, std::byte{9});
    const EncodeStats stats = encoder.end(end, out);
    if (full) decoded.clear();
    const auto result = decode_epoch(out, decoded);
    RC_ASSERT(!::testing::Test::HasFailure());
    RC_ASSERT(result.has_machine == full);
    RC_ASSERT(result.summary.full == full);
    RC_ASSERT(result.device_state == end.device_state);
    RC_ASSERT(stats.captured_pages == plan.writes.size());
    RC_ASSERT(stats.unchanged_pages + stats.zero_pages + stats.data_pages == stats.captured_pages);
    RC_ASSERT(result.summary.stored_pages == stats.zero_pages + stats.data_pages);
    RC_ASSERT(decoded == next);
    expected = std::move(next);
    must_be_full = false;
    ++epoch;
  }
}

}  // namespace
}  // namespace vmshadow::delta
