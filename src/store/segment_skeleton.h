// Reads a sealed segment's skeleton: its records without their payload (format/skeleton.h).
//
// Nothing is visited unless all of it is whole. A segment without a seal is not full yet, or lost
// it: its records are then read one by one, with the same outcome.
#pragma once

#include <functional>
#include <string>

#include <vmshadow/result.h>
#include <vmshadow/types.h>

#include "format/skeleton.h"
#include "store/segment_scanner.h"

namespace vmshadow::store {

/// `front` is what format::skeleton_meta_bytes() says of the record's body.
using RecordVisitor =
    std::function<void(std::uint64_t offset, const format::RecordPrefix& prefix, ByteSpan front)>;

struct SkeletonOutcome {
  bool visited{};
  /// The segment ends with a seal, or what may have been one: it is full.
  bool sealed{};
  std::string trouble;  ///< why a sealed segment's skeleton cannot be used
  format::Seal seal;    ///< if visited
};

[[nodiscard]] SkeletonOutcome visit_skeleton(const ByteSource& source, SegmentId segment,
                                             const RecordVisitor& visit);

}  // namespace vmshadow::store
