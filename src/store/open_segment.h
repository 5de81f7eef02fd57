// The journal segment that is being written: making it, out of a spare file where there is one,
// reserving its space, writing batches to it, cutting it back, sealing it.
//
//   make() ─► begin_write() … ─► finish_write(), advance() … ─► seal()
//                                       │ disk full
//                                       └──► cut_back() to an end() it had
//
// A batch is whole 4 KiB blocks, so that it can go past the page cache; its mark fills the last one
// up (format/journal.h). A segment's head, its opening and their mark are durable in the file
// before that gets the segment's name, be it a spare or a new one: under that name it is never
// anything else, and never less.
//
// One thread at a time, but for the file, which another may sync.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <vmshadow/clock.h>
#include <vmshadow/result.h>
#include <vmshadow/types.h>

#include "format/journal.h"
#include "format/skeleton.h"
#include "io/append_file.h"
#include "store/log_limits.h"
#include "store/segment_catalog.h"
#include "store/spare_segments.h"

namespace vmshadow::store {

class OpenSegment {
 public:
  /// Makes the records that the new segment `id` begins with, whole, each aligned.
  using Opening = std::function<std::vector<std::byte>(SegmentId id)>;
  struct Ground {
    SegmentCatalog& catalog;
    io::FileSystem& files;
    const Clock& clock;
    SpareSegments& spares;
  };
  /// A place behind a batch, where the segment could be cut.
  struct End {
    format::JournalPosition at;
    format::SkeletonWriter::Mark skeleton;
  };

  /// None is open yet. What `ground` names outlives it.
  OpenSegment(const Ground& ground, const LogLimits& limits, Opening opening);

  /// Null: none is open.
  [[nodiscard]] const std::shared_ptr<io::AppendFile>& file() const { return file_; }
  [[nodiscard]] const format::JournalPosition& tail() const { return tail_; }
  [[nodiscard]] End end() const { return {tail_, skeleton_.mark()}; }
  /// Whether a batch with so many bytes of records fits behind what was begun. What `is_one`
  /// request, which cannot be written in parts, does in a fresh segment, however large: they are
  /// bounded.
  [[nodiscard]] bool takes(std::uint64_t bytes, bool is_one) const;

  /// Makes a segment durably; none is open. `for_upkeep`: it may use the room that is kept for
  /// that. After Errc::no_space there is no trace of it; after any other error nothing is known.
  [[nodiscard]] Status make(bool for_upkeep);
  /// Begins to write records, which stay as they are until it is finished, and their mark, behind
  /// what was begun before. The tail stays where it is; everything before `durable` is. After an
  /// error, Errc::no_space (also where only upkeep has room), nothing was begun.
  [[nodiscard]] Status begin_write(std::span<const ByteSpan> records,
                                   const format::JournalPosition& durable, bool for_upkeep);
  /// Waits for the oldest write that was begun.
  [[nodiscard]] Status finish_write();
  /// Whether that needs no waiting.
  [[nodiscard]] bool finishes_at_once() { return file_->finishes_at_once(); }
  /// `record`s of what was written, in order, each with those behind it: the skeleton has them.
  void add_to_skeleton(std::uint64_t offset, ByteSpan records);
  /// What was finished last counts: the tail moves behind it.
  void advance();
  /// Goes back to where it was, on the disk too. Nothing is begun.
  [[nodiscard]] Status cut_back(const End& end);
  /// Ends it, durably. Nothing is begun; all that was written is durable. None is open then.
  [[nodiscard]] Status seal();

  /// Gives up the tier's spare files, as it is short of room. True if there were any.
  bool remove_spares() { return ground_.spares.remove_all(tier_, ground_.files); }
  /// The tier it is in, or would be.
  [[nodiscard]] TierIndex tier() const { return tier_; }
  [[nodiscard]] const std::string& tier_path() const {
    return ground_.catalog.directory().tiers()[tier_].path;
  }
  /// What of that tier is left to upkeep.
  [[nodiscard]] std::uint64_t upkeep_bytes() const;

 private:
  struct Made {
    std::unique_ptr<io::AppendFile> file;
    std::uint64_t file_bytes{};  ///< that were there before it was written
  };
  [[nodiscard]] Status choose_tier(bool for_upkeep);
  [[nodiscard]] Result<Made> make_file(SegmentId id, std::span<const ByteSpan> pieces);
  [[nodiscard]] std::vector<std::byte> make_mark(std::uint64_t begin, std::uint64_t end,
                                                 std::uint64_t chain,
                                                 const format::JournalPosition& durable) const;
  /// Where the next write begins.
  [[nodiscard]] std::uint64_t begun_end() const {
    return begun_.empty() ? tail_.offset.value : begun_.back().end;
  }
  [[nodiscard]] Status reserve(std::uint64_t begin, std::uint64_t end, bool for_upkeep);

  const Ground ground_;
  const LogLimits limits_;
  const Opening opening_;

  TierIndex tier_{};
  std::shared_ptr<io::AppendFile> file_;
  format::JournalPosition tail_;
  format::SegmentSalt salt_{};
  format::SkeletonWriter skeleton_;
  std::uint64_t written_end_ = 0;   ///< of what was finished behind the tail, its mark included
  std::uint64_t opening_end_ = 0;   ///< of the segment's opening
  std::uint64_t reserved_end_ = 0;  ///< up to here space was asked for, or is there
  struct Begun {
    std::uint64_t end{};
    std::vector<std::byte> mark;
  };
  std::deque<Begun> begun_;
};

}  // namespace vmshadow::store
