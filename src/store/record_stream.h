// Reads many records in the order of the disk and decodes them. Records that lie close together in
// one segment are a run, of about 512 KiB, and come in one read, past the page cache. Threads work
// ahead of the caller, each on a run of its own: one waits for the disk while another decodes.
//
//   places ──► run 0: read, check, decode ──┐
//              run 1: read, check, decode ──┼──► next(), in the order of the places
//              run 2: …                   ──┘
//
// If a read fails or ends short, or a record is not what was expected or does not decode, the
// caller's thread does it again for that record alone, so that damage to one costs, and is blamed
// on, that one alone.
#pragma once

#include <array>
#include <condition_variable>
#include <cstddef>
#include <functional>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include <vmshadow/result.h>

#include "store/segment_files.h"

namespace vmshadow::store {

class RecordStream {
 public:
  /// Makes of the plain body of the record at places[place] what is wanted of it, in `out`. Called
  /// on any thread, several at once; after an error perhaps once more.
  using Decode = std::function<Status(std::size_t place, ByteSpan body, MutableByteSpan out)>;
  struct Wanted {
    format::RecordType type{};
    std::span<const RecordPlace> places;  ///< rising by position
    Decode decode;
    std::size_t decoded_bytes{};  ///< what decode() has room for, of each record
  };
  /// All that is given must outlive the stream.
  RecordStream(const SegmentFiles& segments, const SegmentFiles::Owner& owner, Wanted wanted);
  ~RecordStream();
  RecordStream(const RecordStream&) = delete;
  RecordStream& operator=(const RecordStream&) = delete;

  /// The next record, decoded, valid until the next call; there must be one. Errors as
  /// SegmentFiles::read(), plain_body() and decode().
  [[nodiscard]] Result<ByteSpan> next();

 private:
  static constexpr std::size_t kReadBytes = std::size_t{512} << 10;
  /// Of small records no more than this, or what they decode to takes too much memory.
  static constexpr std::size_t kRunRecordsMax = 24;
  /// Reading over a gap this wide is cheaper than another read.
  static constexpr std::size_t kGapBytesMax = std::size_t{16} << 10;
  /// Less than this is read by the caller: threads cost more than they gain.
  static constexpr std::uint64_t kThreadBytesMin = std::uint64_t{4} << 20;
  /// However few the processors: most of the time they wait for the disk, which is at its best
  /// when it has several requests.
  static constexpr unsigned kThreads = 6;
  static constexpr std::size_t kBuffers = 8;  ///< one is in the caller's hands

  /// Records that are read at once: places from `first` to before `end`.
  struct Run {
    std::size_t first{};
    std::size_t end{};
    std::uint64_t bytes{};
  };
  /// A run, read and decoded.
  struct Buffer {
    Run run;
    io::AlignedBuffer bytes;
    std::vector<std::byte> opened;   ///< scratch: the plain body of a sealed record
    std::vector<std::byte> decoded;  ///< by record
    std::vector<char> sound;         ///< by record: whether it is in `decoded`
    bool ready = false;
  };
  [[nodiscard]] Run run_from(std::size_t first) const;
  /// Reads and decodes buffer.run.
  void fill(Buffer& buffer) const;
  [[nodiscard]] bool decode(std::size_t place, ByteSpan record, Buffer& buffer,
                            MutableByteSpan out) const;
  void work_ahead();
  /// The next run, from whoever made it.
  void take_run();

  const SegmentFiles& segments_;
  const SegmentFiles::Owner& owner_;
  const Wanted wanted_;

  // Of the caller.
  std::size_t next_ = 0;
  Buffer* current_ = nullptr;
  std::vector<std::byte> alone_opened_;
  std::vector<std::byte> alone_decoded_;  ///< a record that was done again by itself

  std::array<Buffer, kBuffers> buffers_;  ///< run n is in buffer n % kBuffers
  std::mutex mutex_;
  std::condition_variable changed_;
  std::size_t claimed_ = 0;      ///< runs that somebody has begun with
  std::size_t claimed_end_ = 0;  ///< the place behind them
  std::size_t taken_ = 0;        ///< runs the caller has had, the one in its hands included
  bool stopping_ = false;
  std::vector<std::thread> threads_;  ///< none: the caller does it
};

}  // namespace vmshadow::store
