// What was written to a disk, beside a model that keeps every page.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "capture/written_pages.h"

namespace vmshadow::capture {
namespace {

constexpr std::size_t kDiskPages = 24;

/// A page's fill byte, where it was written.
using Model = std::vector<std::optional<unsigned char>>;

struct Step {
  std::size_t first{}, pages{};
  unsigned char fill{};  ///< 0: as zeroes
};

rc::Gen<Step> step() {
  return rc::gen::apply(
      [](std::size_t first, std::size_t pages, unsigned char fill) {
        return Step{first, std::min(pages, kDiskPages - first), fill};
      },
      rc::gen::inRange<std::size_t>(0, kDiskPages), rc::gen::inRange<std::size_t>(1, 10),
      rc::gen::weightedOneOf<unsigned char>(
          {{1, rc::gen::just<unsigned char>(0)}, {2, rc::gen::inRange<unsigned char>(1, 255)}}));
}

RC_GTEST_PROP(WrittenPagesProperty, HoldTheNewestOfEveryPage, ()) {
  WrittenPages written;
  Model model(kDiskPages);
  for (const Step& one : *rc::gen::container<std::vector<Step>>(step())) {
    for (std::size_t i = 0; i < one.pages; ++i) model[one.first + i] = one.fill;
    if (one.fill == 0) {
      written.zero({one.first, one.first + one.pages});
    } else {
      const std::vector<std::byte> data(one.pages * kPageBytes, std::byte{one.fill});
      written.write(PageNumber{one.first}, data);
    }
  }
  const auto pages = written.pages();
  RC_ASSERT(pages.size() == written.content_pages());
  RC_ASSERT(std::is_sorted(pages.begin(), pages.end()));
  std::size_t zeroes = 0;
  for (std::size_t page = 0; page < kDiskPages; ++page) {
    const bool with_content =
        std::find(pages.begin(), pages.end(), PageNumber{page}) != pages.end();
    const bool zero = written.zeroes().contains(page);
    RC_ASSERT(!(with_content && zero));
    RC_ASSERT(model[page].has_value() == (with_content || zero));
    zeroes += zero ? 1 : 0;
    if (zero) RC_ASSERT(*model[page] == 0);
    if (!with_content) continue;
    const ByteSpan content = written.content(PageNumber{page});
    RC_ASSERT(std::all_of(content.begin(), content.end(),
                          [&](std::byte byte) { return byte == std::byte{*model[page]}; }));
  }
  RC_ASSERT(written.zero_pages() == zeroes);
  RC_ASSERT(written.empty() == (zeroes == 0 && pages.empty()));
}

RC_GTEST_PROP(WrittenPagesProperty, EndWithTheDisk, ()) {
  WrittenPages written;
  const auto bytes = *rc::gen::inRange<std::size_t>(1, 3 * kPageBytes);
  written.write(PageNumber{0}, std::vector<std::byte>(3 * kPageBytes, std::byte{0xff}));
  written.write(PageNumber{0}, std::vector<std::byte>(bytes, std::byte{7}));
  for (std::size_t i = 0; i < 3 * kPageBytes; ++i) {
    const std::byte found = written.content(PageNumber{i / kPageBytes})[i % kPageBytes];
    const bool in_last_page = i / kPageBytes <= (bytes - 1) / kPageBytes;
    RC_ASSERT(found == (i < bytes ? std::byte{7} : in_last_page ? std::byte{} : std::byte{0xff}));
  }
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
