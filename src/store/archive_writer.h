// Writes archives: segments that are written once, from front to back, sealed and then never
// changed.
//
//   head │ replace (what it is made from) │ vm_states │ records … │ skeleton │ pad │ seal
//
// A new segment is begun when one is full. The catalog has them from the start, so that they count
// for what a tier may take, but unlisted: nothing of them is valid until a replace record in the
// journal says so. Until then they can be removed without harm, and discard() does. A file has a
// spare's name until all of it is durable: what has a segment's name is a whole one, or damaged.
#pragma once

#include <memory>
#include <vector>

#include <vmshadow/clock.h>
#include <vmshadow/result.h>
#include <vmshadow/types.h>

#include "format/skeleton.h"
#include "format/store_state.h"
#include "io/append_file.h"
#include "store/record_place.h"
#include "store/segment_catalog.h"
#include "store/tier.h"

namespace vmshadow::store {

class ArchiveWriter {
 public:
  struct Plan {
    TierKind kind{};  ///< of the tier it goes to
    std::uint64_t segment_bytes{};
    /// What will be appended, about: no more room than that is asked for.
    std::uint64_t expected_bytes{};
    std::vector<SegmentId> sources;
    /// vm_state records, whole and aligned, that say what is kept: what else the sources held is
    /// gone.
    std::vector<std::byte> states;
  };
  ArchiveWriter(SegmentCatalog& catalog, io::FileSystem& files, const Clock& clock, Plan plan);
  ~ArchiveWriter();
  ArchiveWriter(const ArchiveWriter&) = delete;
  ArchiveWriter& operator=(const ArchiveWriter&) = delete;

  /// Appends a whole record; `pages` as RecordPlace has it.
  [[nodiscard]] Result<RecordPlace> append(ByteSpan record, std::size_t pages = 0);
  [[nodiscard]] Result<RecordPlace> append(const format::RecordHead& head, ByteSpan body,
                                           std::size_t pages = 0);
  /// Makes all of it durable. Nothing can be appended any more.
  [[nodiscard]] Status finish();
  /// Removes what was written, for good.
  void discard();

  struct Made {
    SegmentId id;
    TierIndex tier{};
    std::uint64_t bytes{};
    std::uint64_t record_bytes{};  ///< of these, what was appended
  };
  /// The segments, once finish() was called.
  [[nodiscard]] const std::vector<Made>& segments() const { return made_; }
  [[nodiscard]] std::uint64_t written_bytes() const { return written_bytes_; }

 private:
  [[nodiscard]] Status begin_segment();
  void add_aligned(ByteSpan records);
  [[nodiscard]] Status end_segment();
  [[nodiscard]] Status flush(bool all);

  SegmentCatalog& catalog_;
  io::FileSystem& files_;
  const Clock& clock_;
  const Plan plan_;

  std::unique_ptr<io::AppendFile> file_;  ///< null: none is open
  std::vector<std::byte> buffer_;         ///< what is not written yet, from flushed_ on
  std::uint64_t flushed_ = 0;
  format::SkeletonWriter skeleton_;
  std::vector<Made> made_;  ///< the last one is being written if file_ is set
  std::uint64_t written_bytes_ = 0;
};

}  // namespace vmshadow::store
