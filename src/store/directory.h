// The store's directory: what is in it, whose it is, and who may write.
//
//   DIR/VMSHADOW-STORE            text: format version, the store's id, a checksum
//   DIR/LOCK                      flock, held by the one process that writes
//   DIR/segments/%016x.seg        the journal
#pragma once

#include <string>
#include <vector>

#include <vmshadow/result.h>
#include <vmshadow/types.h>

#include "format/journal.h"
#include "io/append_file.h"
#include "io/file.h"

namespace vmshadow::store {

class StoreDirectory {
 public:
  /// Opens an existing store. Errc::not_found, Errc::version (made by a newer program),
  /// Errc::corrupt, Errc::permission, Errc::invalid_argument (no directory, or not a store).
  [[nodiscard]] static Result<StoreDirectory> open(const std::string& path);
  /// Makes `path` a store if it is empty or does not exist (its parent must). Call with the lock
  /// held.
  [[nodiscard]] static Result<StoreDirectory> open_or_create(const std::string& path,
                                                             io::FileSystem& files);
  /// Makes the directory if needed and takes its lock. Errc::in_use names the other process.
  [[nodiscard]] static Result<io::FileLock> lock(const std::string& path);

  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] const format::StoreId& id() const { return id_; }
  [[nodiscard]] std::string segments_path() const { return path_ + "/segments"; }
  [[nodiscard]] std::string segment_path(SegmentId segment) const;

  struct Listing {
    std::vector<SegmentId> segments;   ///< rising
    std::vector<std::string> foreign;  ///< names that are no segment's
  };
  [[nodiscard]] Result<Listing> list() const;

 private:
  StoreDirectory(std::string path, format::StoreId id) : path_(std::move(path)), id_(id) {}
  std::string path_;
  format::StoreId id_;
};

/// The identity file's text, and back. Pure.
[[nodiscard]] std::string encode_identity(const format::StoreId& id);
/// Errc::corrupt, or Errc::version for a newer store.
[[nodiscard]] Result<format::StoreId> decode_identity(const std::string& text);
[[nodiscard]] std::string store_id_text(const format::StoreId& id);

}  // namespace vmshadow::store
