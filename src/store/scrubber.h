// Reads sealed segments again and again, a little at a time, and finds what the disk no longer
// gives back as it was written, before somebody needs it: records that fail their checksums or do
// not decode, and batches that are not what their marks were made for.
//
// It goes round by segment number. A segment's cached pages are dropped first, so that it is the
// disk that answers.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include <vmshadow/types.h>

#include "store/damage.h"
#include "store/journal_index.h"
#include "store/segment_catalog.h"

namespace vmshadow::store {

class Scrubber {
 public:
  Scrubber(const SegmentCatalog& catalog, const JournalIndex& index);
  ~Scrubber();
  Scrubber(const Scrubber&) = delete;
  Scrubber& operator=(const Scrubber&) = delete;

  /// Reads about `bytes` more, or up to the end of the round; returns the damage in it. One thread.
  [[nodiscard]] std::vector<Damage> step(std::uint64_t bytes);

  [[nodiscard]] std::uint64_t scrubbed_bytes() const { return scrubbed_bytes_; }
  [[nodiscard]] std::uint64_t rounds() const { return rounds_; }

 private:
  struct Current;
  /// False: there is none behind the last one, the round is over.
  bool begin_next_segment();

  const SegmentCatalog& catalog_;
  const JournalIndex& index_;
  std::unique_ptr<Current> current_;  ///< null: between two segments
  SegmentId last_{0};
  std::uint64_t scrubbed_bytes_ = 0;
  std::uint64_t rounds_ = 0;
};

}  // namespace vmshadow::store
