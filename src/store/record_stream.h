// Reads many records in the order of the disk. Records that lie close together in one segment come
// in one read of about a MiB; a thread reads and checks them ahead of the caller, who decodes
// meanwhile, and the kernel is told of the reads that follow. If a read fails or ends short, or a
// record is not what was expected, it is read again by itself, so that damage to one costs, and is
// blamed on, that one alone.
#pragma once

#include <array>
#include <condition_variable>
#include <cstddef>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include <vmshadow/result.h>

#include "store/segment_files.h"

namespace vmshadow::store {

class RecordStream {
 public:
  /// `places` rise by position. All that is given must outlive the stream.
  RecordStream(const SegmentFiles& segments, format::RecordType type,
               const SegmentFiles::Owner& owner, std::span<const RecordPlace> places);
  ~RecordStream();
  RecordStream(const RecordStream&) = delete;
  RecordStream& operator=(const RecordStream&) = delete;

  /// The next record's plain body, checked, valid until the next call; there must be one. Errors as
  /// SegmentFiles::read() and plain_body().
  [[nodiscard]] Result<ByteSpan> next();

 private:
  static constexpr std::size_t kReadBytes = std::size_t{1} << 20;
  /// Reading over a gap this wide is cheaper than another read.
  static constexpr std::size_t kGapBytesMax = std::size_t{16} << 10;
  /// Kernel's read-ahead: so much is under way at a time.
  static constexpr std::uint64_t kAnnouncedBytes = std::uint64_t{8} << 20;
  /// Less than this is read by the caller: a thread costs more than it gains.
  static constexpr std::uint64_t kThreadBytesMin = std::uint64_t{4} << 20;
  static constexpr std::size_t kBuffers = 3;

  /// Records that are read at once: places from `first` to before `end`.
  struct Run {
    std::size_t first{};
    std::size_t end{};
    std::uint64_t bytes{};
  };
  /// A run that was read.
  struct Buffer {
    Run run;
    std::vector<std::byte> bytes;
    /// By record: its prefix, if it is in `bytes`, and as expected.
    std::vector<std::optional<format::RecordPrefix>> sound;
  };
  [[nodiscard]] Run run_from(std::size_t first) const;
  void announce();
  /// Reads the run that begins at place `first`.
  void fill(Buffer& buffer, std::size_t first);
  void read_ahead();
  /// The next run, from whoever reads.
  void take_run();

  const SegmentFiles& segments_;
  const format::RecordType type_;
  const SegmentFiles::Owner& owner_;
  const std::span<const RecordPlace> places_;

  // Of whoever reads.
  std::size_t announced_end_ = 0;      ///< the kernel was told of the places before this one
  std::uint64_t announced_bytes_ = 0;  ///< of those, told but not read yet

  // Of the caller.
  std::size_t next_ = 0;
  Buffer* current_ = nullptr;
  SegmentFiles::Record alone_;
  std::vector<std::byte> opened_;

  std::array<Buffer, kBuffers> buffers_;  ///< used in turn
  std::mutex mutex_;
  std::condition_variable changed_;
  std::size_t filled_ = 0;  ///< runs read
  std::size_t taken_ = 0;   ///< runs taken by the caller; the last of them is in its hands
  bool stopping_ = false;
  std::thread thread_;  ///< none: the caller reads
};

}  // namespace vmshadow::store
