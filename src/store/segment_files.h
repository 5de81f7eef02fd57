// Open segment files, for reading records at random. Safe from several threads.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include <vmshadow/result.h>

#include "base/unique_fd.h"
#include "format/record.h"
#include "io/aligned_buffer.h"
#include "store/keyring.h"
#include "store/record_place.h"
#include "store/segment_catalog.h"

namespace vmshadow::store {

class SegmentFiles {
 public:
  /// `keys` open sealed records.
  SegmentFiles(std::shared_ptr<const SegmentCatalog> catalog, std::shared_ptr<const Keyring> keys)
      : catalog_(std::move(catalog)), keys_(std::move(keys)) {}

  [[nodiscard]] const SegmentCatalog& catalog() const { return *catalog_; }
  [[nodiscard]] const Keyring& keys() const { return *keys_; }

  struct OpenFile {
    UniqueFd fd;
    UniqueFd past_cache;  ///< empty: there is no such way
  };
  /// Opened files stay readable and what they are, even once the store has archived and removed
  /// them: their locks (io::open_shared) keep it from writing them anew.
  using Hold = std::vector<std::shared_ptr<const OpenFile>>;
  /// Opens these segments and keeps them open as long as the hold lives. Errc::not_found if one is
  /// gone already: whoever asked knows an old state of the index.
  [[nodiscard]] Result<Hold> hold(const std::vector<SegmentId>& segments) const;

  /// Whose record is expected: the name is for messages, and may be the id in hex.
  struct Owner {
    VmId id;
    std::string name;
  };
  struct Record {
    format::RecordPrefix prefix;
    std::vector<std::byte> bytes;  ///< prefix and body
    [[nodiscard]] ByteSpan body() const {
      return ByteSpan(bytes).subspan(format::kRecordPrefixBytes);
    }
  };
  /// Reads a record into `record` (its buffer is used again) and checks it against its checksums
  /// and what is expected of it: its type, which may be sealed if `place` says so. Errc::corrupt
  /// names segment, offset, VM and epoch; so does what the disk says if it cannot be read at all
  /// (Errc::io).
  [[nodiscard]] Status read(const RecordPlace& place, format::RecordType type, const Owner& owner,
                            Record& record) const;
  /// Reads from `offset` until `out` is full or the segment ends; returns the bytes read. Nothing
  /// is checked.
  [[nodiscard]] Result<std::size_t> read_raw(SegmentId id, SegmentOffset offset,
                                             MutableByteSpan out) const;
  /// The same for a long range that is read once: past the page cache, which would only cost a copy
  /// and what others have in it, unless it is in there. Returns what was read, in `buffer`, which
  /// is made larger if need be.
  [[nodiscard]] Result<ByteSpan> read_past_cache(SegmentId id, SegmentOffset offset,
                                                 std::size_t bytes,
                                                 io::AlignedBuffer& buffer) const;
  /// Lets go of a segment that is no longer part of the store: its space is free once no image
  /// holds it any more.
  void forget(SegmentId id) const;
  /// Says that so much of a segment was read for who wants an epoch (not for the store's upkeep).
  void count_read(SegmentId id, std::uint64_t bytes) const;
  using Reads = std::map<SegmentId, std::uint64_t>;  ///< bytes
  /// What was counted since this was called last.
  [[nodiscard]] Reads take_reads() const;

  /// The plain body of a record that passed those checks: its own, or what it was before it was
  /// sealed, in `opened`. Errors as Keyring::open(), Errc::corrupt with the place.
  [[nodiscard]] Result<ByteSpan> plain_body(const RecordPlace& place, const Owner& owner,
                                            const format::RecordPrefix& prefix, ByteSpan body,
                                            std::vector<std::byte>& opened) const;
  /// The checks of read() on `bytes`, which were read from `place`.
  [[nodiscard]] static Result<format::RecordPrefix> check(const RecordPlace& place,
                                                          format::RecordType type,
                                                          const Owner& owner, ByteSpan bytes);

 private:
  static constexpr std::size_t kOpenMax = 256;
  [[nodiscard]] Result<std::shared_ptr<const OpenFile>> file(SegmentId id) const;

  const std::shared_ptr<const SegmentCatalog> catalog_;
  const std::shared_ptr<const Keyring> keys_;
  mutable std::mutex mutex_;
  mutable std::map<SegmentId, std::weak_ptr<const OpenFile>> open_;
  /// At most kOpenMax.
  mutable std::deque<std::pair<SegmentId, std::shared_ptr<const OpenFile>>> recent_;
  mutable std::mutex reads_mutex_;
  mutable Reads reads_;
};

}  // namespace vmshadow::store
