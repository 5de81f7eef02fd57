// The store's directories: what is in them, whose they are, and who may write.
//
//   DIR/VMSHADOW-STORE            text: format version, the store's id, a checksum
//   DIR/TIERS                     text: the tier directories, a checksum; absent: DIR is the only
//                                 one
//   DIR/LOCK                      flock, held by the one process that writes
//   TIER/VMSHADOW-TIER            as VMSHADOW-STORE: says that the tier is this store's, and
//   mounted TIER/segments/%016x.seg       segments; TIER is DIR itself where there is no TIERS
//   TIER/segments/%016x.spare     files for the next segments
//   TIER/segments/%016x.aside     files that a start which found damage would not unlink
#pragma once

#include <string>
#include <vector>

#include <vmshadow/result.h>
#include <vmshadow/types.h>

#include "format/journal.h"
#include "io/append_file.h"
#include "io/file.h"
#include "store/tier.h"

namespace vmshadow::store {

class StoreDirectory {
 public:
  /// Opens an existing store. Errc::not_found (also for a tier that is not there: a disk that is
  /// not mounted, say), Errc::version (another version's), Errc::corrupt, Errc::permission,
  /// Errc::invalid_argument (no directory, or not a store).
  [[nodiscard]] static Result<StoreDirectory> open(const std::string& path);
  /// Makes `path` a store if it is empty or does not exist (its parent must). `tiers`, unless
  /// empty, become the store's from now on; one that is left out must hold no segment, and loses
  /// its spare files. Call with the lock held.
  [[nodiscard]] static Result<StoreDirectory> open_or_create(
      const std::string& path, io::FileSystem& files,
      const std::vector<TierDirectory>& named_tiers = {});
  /// Makes the directory if needed and takes its lock. Errc::in_use names the other process.
  [[nodiscard]] static Result<io::FileLock> lock(const std::string& path);

  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] const format::StoreId& id() const { return id_; }
  /// At least one.
  [[nodiscard]] const std::vector<TierDirectory>& tiers() const { return tiers_; }
  [[nodiscard]] std::string segments_path(TierIndex tier) const;
  [[nodiscard]] std::string segment_path(TierIndex tier, SegmentId segment) const;
  [[nodiscard]] std::string spare_path(TierIndex tier, SegmentId segment) const;
  [[nodiscard]] std::string aside_path(TierIndex tier, SegmentId segment) const;

  struct SegmentFile {
    SegmentId id;
    TierIndex tier{};
  };
  struct Listing {
    std::vector<SegmentFile> segments;  ///< by number
    std::vector<SegmentFile> spares;    ///< files kept to be written anew (spare_segments.h)
    std::vector<SegmentFile> aside;     ///< kept by a start that found damage; they do not count
    std::vector<std::string> foreign;   ///< paths that are none of these
  };
  /// Errc::corrupt if two tiers hold the same segment.
  [[nodiscard]] Result<Listing> list() const;

 private:
  StoreDirectory(std::string path, format::StoreId id, std::vector<TierDirectory> tiers)
      : path_(std::move(path)), id_(id), tiers_(std::move(tiers)) {}
  [[nodiscard]] static Result<StoreDirectory> open_with(const std::string& path,
                                                        std::vector<TierDirectory> tiers);
  std::string path_;
  format::StoreId id_;
  std::vector<TierDirectory> tiers_;
};

/// The identity file's text, and back. Pure.
[[nodiscard]] std::string encode_identity(const format::StoreId& id);
/// Errc::corrupt, or Errc::version for another version's store.
[[nodiscard]] Result<format::StoreId> decode_identity(const std::string& text);
[[nodiscard]] std::string store_id_text(const format::StoreId& id);
/// The TIERS file's text (kinds and paths; capacities are options), and back. Pure.
[[nodiscard]] std::string encode_tiers(const std::vector<TierDirectory>& tiers);
[[nodiscard]] Result<std::vector<TierDirectory>> decode_tiers(const std::string& text);

}  // namespace vmshadow::store
