// Writes spare files ahead of need, so that a store that has given up no segment yet begins its
// journal in blocks that are written already: zeros, a little at a time, while little comes in.
//
// A file under way is no spare yet, but its bytes count as spare files' do. If the program ends
// before it is whole, the next start keeps or removes it as any other spare file.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include <vmshadow/result.h>
#include <vmshadow/types.h>

#include "io/append_file.h"
#include "store/segment_catalog.h"
#include "store/spare_segments.h"

namespace vmshadow::store {

class SpareWriter {
 public:
  /// Up to `count` spares of `file_bytes` in the tier where segments are begun. `files` is the
  /// calling thread's; all that is named outlives it.
  SpareWriter(SegmentCatalog& catalog, SpareSegments& spares, io::FileSystem& files,
              std::size_t count, std::uint64_t file_bytes);

  /// Whether the tier would be short of room with so many bytes more.
  using IsShort = std::function<bool(TierIndex tier, std::uint64_t bytes)>;
  /// Writes about `bytes` more, if they are wanted; says how many.
  [[nodiscard]] Result<std::uint64_t> step(std::uint64_t bytes, const IsShort& is_short);
  /// Removes the file under way if it is in this tier. True if that gave the tier some room.
  bool give_up(TierIndex tier);

 private:
  [[nodiscard]] Status begin(TierIndex tier);
  [[nodiscard]] Status finish();
  void discard();

  SegmentCatalog& catalog_;
  SpareSegments& spares_;
  io::FileSystem& files_;
  const std::size_t count_;
  const std::uint64_t file_bytes_;

  std::unique_ptr<io::AppendFile> file_;  ///< the one under way
  SpareSegments::Spare spare_;            ///< what it will be; its bytes so far
};

}  // namespace vmshadow::store
