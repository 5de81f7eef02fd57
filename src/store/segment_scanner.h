// Walks the records of one segment, whatever its bytes are.
//
// next() yields whole, checked records and, for what is not one, bad regions: by the record's
// length where its prefix is good, else up to the next aligned place where a good prefix stands.
// Nothing is allocated by what the bytes claim beyond the largest record.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include <vmshadow/result.h>
#include <vmshadow/types.h>

#include "format/record.h"

namespace vmshadow::store {

/// A segment's bytes. Bytes that cannot be read come back as zeros: they then fail their checksum.
class ByteSource {
 public:
  virtual ~ByteSource() = default;
  [[nodiscard]] virtual std::uint64_t bytes() const = 0;
  /// Fills `into` from `offset`; fewer only at the end.
  [[nodiscard]] virtual std::size_t read_at(std::uint64_t offset, MutableByteSpan into) const = 0;
};

class MemorySource final : public ByteSource {
 public:
  explicit MemorySource(ByteSpan bytes) : bytes_(bytes) {}
  [[nodiscard]] std::uint64_t bytes() const override { return bytes_.size(); }
  [[nodiscard]] std::size_t read_at(std::uint64_t offset, MutableByteSpan into) const override;

 private:
  ByteSpan bytes_;
};

class FileSource final : public ByteSource {
 public:
  /// `fd` outlives the source. The size is taken now: a writer may be appending.
  [[nodiscard]] static Result<FileSource> create(int fd);
  [[nodiscard]] std::uint64_t bytes() const override { return bytes_; }
  [[nodiscard]] std::size_t read_at(std::uint64_t offset, MutableByteSpan into) const override;

 private:
  FileSource(int fd, std::uint64_t bytes) : fd_(fd), bytes_(bytes) {}
  int fd_;
  std::uint64_t bytes_;
};

struct GoodRecord {
  std::uint64_t offset{};
  format::RecordPrefix prefix;
  ByteSpan body;  ///< until the next call of next()
};
struct BadRegion {
  std::uint64_t offset{};
  std::uint64_t end{};
  std::string what;
  std::optional<format::RecordPrefix> prefix;  ///< set if only the body is bad
  bool unwritten = false;                      ///< nothing but zero bytes, up to the segment's end
};
struct EndOfSegment {};
using ScanItem = std::variant<EndOfSegment, GoodRecord, BadRegion>;

class SegmentScanner {
 public:
  /// Starts at `offset`, a multiple of kRecordAlignment behind the head.
  SegmentScanner(const ByteSource& source, std::uint64_t offset);
  [[nodiscard]] ScanItem next();
  /// Where the next record would stand.
  [[nodiscard]] std::uint64_t offset() const { return offset_; }

 private:
  /// Up to `count` bytes at `offset` (fewer at the end); valid until the next call.
  ByteSpan peek(std::uint64_t offset, std::size_t count);
  std::uint64_t find_prefix(std::uint64_t from);
  void skip_seal_block();
  bool rest_is_zero();
  ScanItem bad(std::uint64_t end, std::string what,
               std::optional<format::RecordPrefix> prefix = std::nullopt);

  const ByteSource& source_;
  std::uint64_t bytes_;
  std::uint64_t offset_;
  std::vector<std::byte> window_;
  std::uint64_t window_start_ = 0;
  std::size_t window_bytes_ = 0;
};

}  // namespace vmshadow::store
