// What was written to a disk, beside a model that keeps every sector.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <optional>
#include <vector>

#include "capture/written_pages.h"

namespace vmshadow::capture {
namespace {

constexpr std::uint64_t kSectorBytes = WrittenPages::kSectorBytes;
constexpr std::size_t kDiskSectors = 12 * kPageBytes / kSectorBytes;

/// A sector's fill byte, where it was written.
using Model = std::vector<std::optional<unsigned char>>;

struct Step {
  std::size_t first{}, sectors{};
  unsigned char fill{};  ///< 0: as zeroes
};

rc::Gen<Step> step() {
  return rc::gen::apply(
      [](std::size_t first, std::size_t sectors, unsigned char fill) {
        return Step{first, std::min(sectors, kDiskSectors - first), fill};
      },
      rc::gen::inRange<std::size_t>(0, kDiskSectors), rc::gen::inRange<std::size_t>(1, 40),
      rc::gen::weightedOneOf<unsigned char>(
          {{1, rc::gen::just<unsigned char>(0)}, {2, rc::gen::inRange<unsigned char>(1, 255)}}));
}

void apply(const Step& step, WrittenPages& written, Model& model) {
  for (std::size_t i = 0; i < step.sectors; ++i) model[step.first + i] = step.fill;
  const std::uint64_t offset = step.first * kSectorBytes;
  if (step.fill == 0) return written.zero(offset, step.sectors * kSectorBytes);
  const std::vector<std::byte> data(step.sectors * kSectorBytes, std::byte{step.fill});
  written.write(offset, data);
}

/// The disk as it was before: what completes a page.
std::byte before(std::size_t sector) { return std::byte(0xa0 + sector % 16); }

void complete_all(WrittenPages& written) {
  for (const PageNumber page : written.incomplete()) {
    std::vector<std::byte> content(kPageBytes);
    for (std::size_t i = 0; i < kPageBytes; ++i) {
      content[i] = before((page.value * kPageBytes + i) / kSectorBytes);
    }
    written.complete(page, content);
  }
  RC_ASSERT(written.incomplete().empty());
}

void compare(WrittenPages& written, const Model& model) {
  complete_all(written);
  const auto pages = written.pages();
  RC_ASSERT(pages.size() == written.content_pages());
  constexpr std::size_t kSectorsOfPage = kPageBytes / kSectorBytes;
  for (std::size_t page = 0; page < kDiskSectors / kSectorsOfPage; ++page) {
    bool touched = false;
    for (std::size_t i = 0; i < kSectorsOfPage; ++i) {
      touched |= model[page * kSectorsOfPage + i].has_value();
    }
    const bool with_content =
        std::find(pages.begin(), pages.end(), PageNumber{page}) != pages.end();
    const bool zero = written.zeroes().contains(page);
    RC_ASSERT(!(with_content && zero));
    RC_ASSERT(touched == (with_content || zero));
    if (!touched) continue;
    for (std::size_t i = 0; i < kSectorsOfPage; ++i) {
      const std::size_t sector = page * kSectorsOfPage + i;
      const std::byte expected = model[sector] ? std::byte{*model[sector]} : before(sector);
      const std::byte found =
          zero ? std::byte{} : written.content(PageNumber{page})[i * kSectorBytes];
      RC_ASSERT(found == expected);
    }
  }
}

RC_GTEST_PROP(WrittenPagesProperty, HoldTheNewestOfEverySector, ()) {
  WrittenPages written;
  Model model(kDiskSectors);
  for (const Step& one : *rc::gen::container<std::vector<Step>>(step())) {
    apply(one, written, model);
  }
  compare(written, model);
}

RC_GTEST_PROP(WrittenPagesProperty, OfTwoEpochsMergeAsIfThereHadBeenOne, ()) {
  WrittenPages older, newer;
  Model model(kDiskSectors);
  for (const Step& one : *rc::gen::container<std::vector<Step>>(step())) apply(one, older, model);
  for (const Step& one : *rc::gen::container<std::vector<Step>>(step())) apply(one, newer, model);
  older.merge_newer(std::move(newer));
  RC_ASSERT(newer.empty());
  compare(older, model);
}

RC_GTEST_PROP(PageRangesProperty, AreASet, ()) {
  PageRanges ranges;
  std::vector<bool> model(64);
  const auto range = rc::gen::pair(rc::gen::inRange(0, 64), rc::gen::inRange(0, 65));
  for (const auto& [add, at] :
       *rc::gen::container<std::vector<std::pair<bool, std::pair<int, int>>>>(
           rc::gen::pair(rc::gen::arbitrary<bool>(), range))) {
    const PageRange which{static_cast<std::uint64_t>(at.first),
                          static_cast<std::uint64_t>(at.second)};
    if (add) {
      ranges.add(which);
    } else {
      ranges.remove(which);
    }
    for (std::uint64_t page = which.first; page < which.end; ++page) model[page] = add;
    std::uint64_t count = 0, runs = 0, seen = 0, last_end = 0;
    for (std::size_t page = 0; page < model.size(); ++page) {
      RC_ASSERT(ranges.contains(page) == model[page]);
      count += model[page] ? 1 : 0;
      runs += model[page] && (page == 0 || !model[page - 1]) ? 1 : 0;
    }
    RC_ASSERT(ranges.pages() == count);
    RC_ASSERT(ranges.runs() == runs);
    ranges.for_each([&](PageRange run) {
      RC_ASSERT(run.first >= last_end && run.first < run.end);
      last_end = run.end;
      seen += run.pages();
    });
    RC_ASSERT(seen == count);
    RC_ASSERT(ranges.empty() == (count == 0));
  }
}

}  // namespace
}  // namespace vmshadow::capture
