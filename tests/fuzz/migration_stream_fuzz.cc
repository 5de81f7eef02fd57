// Any bytes, in chunks the input chooses, through the migration stream parser: no crash, no page
// outside its block, no reference outside the bytes given.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "capture/migration_stream.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace vmshadow;
  if (size < 2) return 0;
  // The first byte sets the chunk size, the second where the device tail is declared complete.
  const std::size_t chunk = std::size_t{data[0]} * 64 + 1;
  const bool end_tail = (data[1] & 1) != 0;
  const ByteSpan bytes(reinterpret_cast<const std::byte*>(data) + 2, size - 2);
  capture::MigrationStream stream;
  std::size_t taken = 0;
  std::size_t given = 0;
  bool tail_ended = false;
  bool in_tail = false;
  for (;;) {
    std::vector<PageRef> pages;
    const ByteSpan window = bytes.subspan(taken, given - taken);
    const auto step = stream.parse(window, pages);
    if (!step) return 0;
    if (step->consumed > window.size()) std::abort();
    for (const PageRef& page : pages) {
      if (page.page.value >= stream.layout().blocks.at(page.block.value).pages()) std::abort();
      if (page.data != nullptr &&
          (page.data < window.data() || page.data + kPageBytes > window.data() + window.size())) {
        std::abort();
      }
    }
    taken += step->consumed;
    if (step->event == capture::MigrationStream::Event::device_tail) in_tail = true;
    if (step->event != capture::MigrationStream::Event::need_more) continue;
    if (in_tail && end_tail && !tail_ended && given > taken) std::abort();
    if (in_tail && end_tail && !tail_ended) {
      tail_ended = true;
      if (given == bytes.size() || !stream.end_initial()) return 0;
      continue;
    }
    if (given == bytes.size()) return 0;
    given = std::min(bytes.size(), given + chunk);
  }
}
