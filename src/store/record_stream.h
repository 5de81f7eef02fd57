// Reads many records in the order of the disk. Records that lie close together in one segment come
// in one read of about a MiB, and the kernel is told of the reads that follow, so that the disk
// works while the caller does. If a read fails or ends short, each record is read by itself, so
// that damage to one costs, and is blamed on, that one alone.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include <vmshadow/result.h>

#include "store/segment_files.h"

namespace vmshadow::store {

class RecordStream {
 public:
  /// `places` rise by position. All that is given must outlive the stream.
  RecordStream(const SegmentFiles& segments, format::RecordType type,
               const SegmentFiles::Owner& owner, std::span<const RecordPlace> places)
      : segments_(segments), type_(type), owner_(owner), places_(places) {}

  /// The next record's plain body, checked, valid until the next call; there must be one. Errors as
  /// SegmentFiles::read() and plain_body().
  [[nodiscard]] Result<ByteSpan> next();

 private:
  static constexpr std::size_t kReadBytes = std::size_t{1} << 20;
  /// Reading over a gap this wide is cheaper than another read.
  static constexpr std::size_t kGapBytesMax = std::size_t{16} << 10;

  /// Kernel's read-ahead: so much is under way at a time.
  static constexpr std::uint64_t kAnnouncedBytes = std::uint64_t{8} << 20;

  /// Records that are read at once: places from `first` to before `end`.
  struct Run {
    std::size_t first{};
    std::size_t end{};
    std::uint64_t bytes{};
  };
  [[nodiscard]] Run run_from(std::size_t first) const;
  void read_ahead();
  void announce();

  const SegmentFiles& segments_;
  const format::RecordType type_;
  const SegmentFiles::Owner& owner_;
  const std::span<const RecordPlace> places_;
  std::size_t next_ = 0;
  std::size_t ahead_end_ = 0;          ///< places before this one were read ahead, or cannot be
  std::size_t announced_end_ = 0;      ///< the kernel was told of the places before this one
  std::uint64_t announced_bytes_ = 0;  ///< of those, told but not read yet
  std::vector<std::byte> ahead_;
  std::uint64_t ahead_offset_ = 0;  ///< of ahead_[0] in the segment
  std::size_t ahead_bytes_ = 0;     ///< of ahead_ that were read
  SegmentFiles::Record alone_;
  std::vector<std::byte> opened_;
};

}  // namespace vmshadow::store
