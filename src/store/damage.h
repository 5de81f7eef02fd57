// What is wrong with a journal, in words an operator can act on.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <vmshadow/result.h>
#include <vmshadow/types.h>

#include "format/journal.h"

namespace vmshadow::store {

/// One place in the journal that is not what was written there.
struct Damage {
  format::JournalPosition at;
  std::uint64_t bytes{};  ///< how much of the segment is unusable from `at`; 0 if unknown
  std::string what;       ///< e.g. "record body fails its checksum"
  std::string vm_name;    ///< empty where it cannot be told
  std::optional<Epoch> epoch;

  /// "segment 0000000000000001.seg, offset 4096, epoch 7 of VM 'web1': record body fails …".
  [[nodiscard]] std::string text() const;
  /// The same as an Errc::corrupt.
  [[nodiscard]] Error error() const;
};

/// The bytes behind the last whole batch: what a dying writer left behind, or what the file held in
/// an earlier life.
struct TornTail {
  format::JournalPosition at;
  std::uint64_t bytes{};
  std::string what;
  /// "epoch 7 of VM 'web1'" for each whole commit record in it that is not of an earlier life. They
  /// were never acknowledged, unless the disk lost or damaged what it had said was durable.
  std::vector<std::string> commits;
};

/// "0000000000000001.seg"
[[nodiscard]] std::string segment_file_name(SegmentId id);
/// The number in a segment's file name, if it is one.
[[nodiscard]] std::optional<SegmentId> parse_segment_file_name(const std::string& name);
/// "0000000000000001.spare": the file of a segment that was given up, kept to be written anew.
[[nodiscard]] std::string spare_file_name(SegmentId id);
[[nodiscard]] std::optional<SegmentId> parse_spare_file_name(const std::string& name);
/// "0000000000000001.aside": a segment that does not count any more, or seems not to, but of which
/// a damaged store may not say so for certain.
[[nodiscard]] std::string aside_file_name(SegmentId id);
[[nodiscard]] std::optional<SegmentId> parse_aside_file_name(const std::string& name);

}  // namespace vmshadow::store
