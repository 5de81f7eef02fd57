// An epoch as the migration stream an unmodified QEMU takes with -incoming. Pure: bytes go to a
// sink.
//
//   magic, version 3
//   07 configuration
//   01 ram START   block list, EOS, footer
//   03 ram END     every page of every block exactly once, EOS, footer
//   device FULL sections, 00          (the device state as it was captured)
//   06 00000000                       (without it QEMU waits for one more byte)
//
// Integers are big-endian. A page is be64(offset | flags), the block's name unless CONTINUE says
// "the same block as before", then 4096 bytes, or one 0 byte for a zero page.
#pragma once

#include <cstdint>
#include <functional>

#include <vmshadow/result.h>
#include <vmshadow/shadow_reader.h>

namespace vmshadow::replay {

/// Takes the next bytes of the stream, in order, in pieces of at most kStreamPieceBytes.
/// May block. An error ends the writing and is returned as it is.
using ByteSink = std::function<Status(ByteSpan)>;
/// Called now and then, between pieces.
using StreamProgress = std::function<void(std::uint64_t pages_done, std::uint64_t pages_total)>;

inline constexpr std::size_t kStreamPieceBytes = std::size_t{256} << 10;

struct StreamStats {
  std::uint64_t bytes{};
  std::uint64_t pages{};       ///< all pages of all blocks
  std::uint64_t zero_pages{};  ///< of those, sent as zero
};

/// Writes the whole stream of `image`. Errc::corrupt if the image contradicts itself (a page
/// outside its block or twice, device state without its end), else the image's or the sink's error.
[[nodiscard]] Result<StreamStats> write_stream(const EpochImage& image, const ByteSink& sink,
                                               const StreamProgress& progress = {});

}  // namespace vmshadow::replay
