// Which segments a store has, where their files are, and the next one's number. Safe from several
// threads.
#pragma once

#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include <vmshadow/result.h>
#include <vmshadow/types.h>

#include "format/journal.h"
#include "format/store_state.h"
#include "store/directory.h"
#include "store/tier.h"

namespace vmshadow::store {

struct SegmentFacts {
  format::SegmentKind kind{};
  TierIndex tier{};
  std::uint64_t bytes{};  ///< of its file; what is known of it while it is written
  bool sealed{};
  /// Part of the store. Not yet or no longer so: an archive whose replace record is not written, a
  /// segment that archives stand for and that is about to be removed.
  bool listed = true;
  /// Of an archive: of `bytes`, those of its VMs' records; the rest it needs for itself.
  std::uint64_t record_bytes{};
  /// Its file is lost; what should be there is known from a list.
  bool missing{};
  /// What its file takes if that is more than `bytes`: a recycled one, until it is cut.
  std::uint64_t file_bytes{};
  [[nodiscard]] std::uint64_t disk_bytes() const { return bytes > file_bytes ? bytes : file_bytes; }
};

class SegmentCatalog {
 public:
  explicit SegmentCatalog(StoreDirectory directory) : directory_(std::move(directory)) {}

  [[nodiscard]] const StoreDirectory& directory() const { return directory_; }
  /// A number that no segment has had before.
  [[nodiscard]] SegmentId allocate();
  /// The newest number given out.
  [[nodiscard]] SegmentId newest() const;
  /// Numbers up to `id` are taken.
  void reserve(SegmentId id);

  void add(SegmentId id, const SegmentFacts& facts);
  void set_bytes(SegmentId id, std::uint64_t bytes, bool sealed);
  /// Its file takes so much, if that is more than the segment's bytes.
  void set_file_bytes(SegmentId id, std::uint64_t bytes);
  void set_listed(const std::vector<SegmentId>& ids, bool listed);
  void remove(SegmentId id);

  [[nodiscard]] std::optional<SegmentFacts> find(SegmentId id) const;
  [[nodiscard]] std::map<SegmentId, SegmentFacts> all() const;
  /// Those listed, as segment_list records have them, by number.
  [[nodiscard]] std::vector<format::SegmentEntry> entries() const;
  /// What the spare files of a tier take, one that is being written ahead included
  /// (spare_segments.h).
  void set_spare_bytes(TierIndex tier, std::uint64_t bytes);
  [[nodiscard]] std::uint64_t spare_bytes(TierIndex tier) const;
  /// What the files of a tier take, spare ones included.
  [[nodiscard]] std::uint64_t tier_bytes(TierIndex tier) const;
  /// How many segments are listed.
  [[nodiscard]] std::size_t listed() const;
  /// The path of a segment's file; Errc::not_found if the store has no such segment (any more).
  [[nodiscard]] Result<std::string> path(SegmentId id) const;

 private:
  const StoreDirectory directory_;
  mutable std::mutex mutex_;
  std::map<SegmentId, SegmentFacts> segments_;
  SegmentId newest_{0};
  std::map<TierIndex, std::uint64_t> spare_bytes_;
};

}  // namespace vmshadow::store
