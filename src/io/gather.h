// Cuts a list of pieces into chunks for direct writing: a chunk that lies in one aligned piece is
// written from where it is, everything else is copied together first.
#pragma once

#include <algorithm>
#include <cstring>
#include <span>

#include <vmshadow/types.h>

#include "io/aligned_buffer.h"

namespace vmshadow::io {

class Gather {
 public:
  explicit Gather(std::span<const ByteSpan> pieces) : pieces_(pieces) { skip_empty(); }

  [[nodiscard]] bool done() const { return pieces_.empty(); }
  /// The next chunk, at most `staging.size()` bytes: a part of a piece, or of `staging`.
  [[nodiscard]] ByteSpan next(MutableByteSpan staging) {
    const ByteSpan rest = pieces_.front().subspan(at_);
    const std::size_t blocks = std::min(rest.size(), staging.size()) / kDirectBlockBytes;
    if (is_block_aligned(rest.data()) && blocks > 0 &&
        (rest.size() >= staging.size() || pieces_.size() == 1)) {
      return advance(rest.first(blocks * kDirectBlockBytes));
    }
    std::size_t filled = 0;
    while (!done() && filled < staging.size()) {
      const ByteSpan from = pieces_.front().subspan(at_);
      const ByteSpan part = from.first(std::min(from.size(), staging.size() - filled));
      std::memcpy(staging.data() + filled, part.data(), part.size());
      filled += part.size();
      advance(part);
    }
    return ByteSpan(staging).first(filled);
  }

 private:
  ByteSpan advance(ByteSpan part) {
    at_ += part.size();
    skip_empty();
    return part;
  }
  void skip_empty() {
    while (!pieces_.empty() && at_ == pieces_.front().size()) {
      pieces_ = pieces_.subspan(1);
      at_ = 0;
    }
  }

  std::span<const ByteSpan> pieces_;
  std::size_t at_ = 0;  ///< in the first piece
};

}  // namespace vmshadow::io
