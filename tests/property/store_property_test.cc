// The page table against a map, and whole stores against the model, on whatever rapidcheck makes
// up.

#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include <map>

#include "store/page_table.h"
#include "store/reader.h"
#include "store/store.h"
#include "store/verifier.h"
#include "support/store_model.h"
#include "support/temp_dir.h"

namespace vmshadow::store {
namespace {

using format::PageKey;

constexpr std::uint16_t kBlocks = 3;
constexpr std::uint64_t kPages = 24;

PageKey any_key() {
  return {BlockIndex{*rc::gen::inRange<std::uint16_t>(0, kBlocks)},
          PageNumber{*rc::gen::inRange<std::uint64_t>(0, kPages)}};
}

/// What each page is after records in this order; groups are numbered as they come.
struct TableModel {
  struct Version {
    bool zero{};
    PageSlot slot;
  };
  std::map<std::uint64_t, Version> pages;
};

void add_group(PageTable::Builder& builder, TableModel& model, std::uint32_t group,
               std::uint32_t sequence) {
  format::PageGroup pages;
  const auto count = *rc::gen::inRange<std::size_t>(1, format::kGroupPagesMax + 1);
  for (std::size_t i = 0; i < count; ++i) {
    const PageKey key = any_key();
    const auto end = pages.keys.begin() + static_cast<std::ptrdiff_t>(pages.page_count);
    if (std::find(pages.keys.begin(), end, key) != end) continue;
    model.pages[key.packed()] = {false, {group, static_cast<std::uint32_t>(pages.page_count)}};
    pages.keys[pages.page_count++] = key;
  }
  builder.add_group(group, sequence, pages);
}

void add_runs(PageTable::Builder& builder, TableModel& model, std::uint32_t sequence) {
  std::vector<format::ZeroRun> runs;
  for (int i = *rc::gen::inRange(1, 4); i > 0; --i) {
    const PageKey first = any_key();
    const auto count = *rc::gen::inRange<std::uint64_t>(1, kPages - first.page.value + 1);
    runs.push_back({first, count});
    for (std::uint64_t page = 0; page < count; ++page) {
      model.pages[PageKey{first.block, PageNumber{first.page.value + page}}.packed()] = {true, {}};
    }
  }
  builder.add_zero_runs(sequence, runs);
}

RC_GTEST_PROP(PageTableProperty, TheLatestRecordWins, ()) {
  PageTable::Builder builder;
  TableModel model;
  std::uint32_t groups = 0;
  const auto records = *rc::gen::inRange<std::uint32_t>(0, 12);
  for (std::uint32_t sequence = 0; sequence < records; ++sequence) {
    if (*rc::gen::arbitrary<bool>()) {
      add_group(builder, model, groups++, sequence);
    } else {
      add_runs(builder, model, sequence);
    }
  }
  const PageTable table = builder.finish();
  std::size_t data_pages = 0;
  for (std::uint16_t block = 0; block < kBlocks; ++block) {
    for (std::uint64_t page = 0; page < kPages; ++page) {
      const PageKey key{BlockIndex{block}, PageNumber{page}};
      const PageLookup found = table.find(key);
      const auto wanted = model.pages.find(key.packed());
      if (wanted == model.pages.end()) {
        RC_ASSERT(found.kind == PageLookup::Kind::absent);
      } else if (wanted->second.zero) {
        RC_ASSERT(found.kind == PageLookup::Kind::zero);
      } else {
        ++data_pages;
        RC_ASSERT(found.kind == PageLookup::Kind::data);
        RC_ASSERT(found.slot.group == wanted->second.slot.group);
        RC_ASSERT(found.slot.slot == wanted->second.slot.slot);
      }
    }
  }
  RC_ASSERT(table.data_pages() == data_pages);
}

RC_GTEST_PROP(StoreProperty, HoldsWhatWasCommitted, ()) {
  const test::TempDir temp{test::TempDir::Where::memory};
  test::StoreModel model;
  test::EpochMaker maker("web", 20);
  StoreOptions options;
  options.log.segment_bytes = *rc::gen::inRange<std::uint64_t>(8'000, 200'000);
  options.piece_bytes = *rc::gen::inRange<std::size_t>(1, 30'000);
  for (int opened = *rc::gen::inRange(1, 3); opened > 0; --opened) {
    const auto store = Store::open(
        temp.file("s"), system_clock(),
        [] { return io::make_file_system(io::FileBackend::automatic); }, options);
    RC_ASSERT(store.has_value());
    RC_ASSERT((*store)->damage().empty());
    auto session = (*store)->open_session("web", "p");
    RC_ASSERT(session.has_value());
    bool full = true;
    for (int epochs = *rc::gen::inRange(0, 5); epochs > 0; --epochs) {
      std::vector<test::EpochMaker::PageWrite> writes;
      for (int n = *rc::gen::inRange(0, 30); n > 0; --n) {
        const auto block = *rc::gen::inRange<std::uint16_t>(0, 2);
        writes.push_back({*rc::gen::inRange<std::uint64_t>(0, block == 0 ? 20 : 8),
                          *rc::gen::inRange<std::uint64_t>(0, 50), block});
      }
      const auto made = maker.make((*session)->generation(), (*session)->next_epoch(), full, writes,
                                   *rc::gen::inRange<std::size_t>(1, 17));
      RC_ASSERT(model.ship(**session, maker, made).has_value());
      full = *rc::gen::weightedElement<bool>({{4, false}, {1, true}});
    }
    RC_ASSERT(model.check(*(*store)->reader()) == "");
  }
  const auto reader = Reader::open(temp.file("s"));
  RC_ASSERT(reader.has_value());
  RC_ASSERT(model.check(**reader) == "");
  RC_ASSERT(Verifier::run(temp.file("s"))->damage.empty());
}

}  // namespace
}  // namespace vmshadow::store
