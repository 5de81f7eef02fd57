// Any bytes, in chunks the input chooses, through the migration stream parser: no crash, no page
// outside its block, no reference outside the bytes given. A device tail ends as the input says:
// never, where QEMU is told to have entered COLO, or with the machine's description (no COLO).
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "capture/migration_stream.h"

namespace {

using namespace vmshadow;  // NOLINT(google-build-using-namespace): a fuzzer, not a header

enum class TailEnds { never, by_colo, by_description };

/// As EpochDrain::read_tail() asks after each piece. True once the tail is whole.
bool ended_by_description(capture::MigrationStream& stream) {
  const auto whole = stream.end_with_description();
  if (!whole || !*whole) return false;
  // What is left is device state, which ends in a zero byte.
  const auto state = stream.take_device_state();
  if (state.empty() || state.back() != std::byte{0}) std::abort();
  return true;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 2) return 0;
  // The first byte sets the chunk size, the second how the device tail ends.
  const std::size_t chunk = std::size_t{data[0]} * 64 + 1;
  const TailEnds tail_ends = (data[1] & 1) != 0   ? TailEnds::by_colo
                             : (data[1] & 2) != 0 ? TailEnds::by_description
                                                  : TailEnds::never;
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
    if (in_tail && !tail_ended && tail_ends == TailEnds::by_colo) {
      if (given > taken) std::abort();
      tail_ended = true;
      if (given == bytes.size() || !stream.end_initial()) return 0;
      continue;
    }
    if (in_tail && !tail_ended && tail_ends == TailEnds::by_description) {
      if (given > taken) std::abort();
      tail_ended = ended_by_description(stream);
    }
    if (given == bytes.size()) return 0;
    given = std::min(bytes.size(), given + chunk);
  }
}
