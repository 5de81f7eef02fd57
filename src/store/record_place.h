// Where a record is, whose it is and how much it holds, in 20 bytes. An index has one for each
// group of pages, tens of millions in a large store.
#pragma once

#include <compare>
#include <cstdint>

#include <vmshadow/types.h>

#include "format/epoch_records.h"
#include "format/journal.h"
#include "format/record.h"
#include "format/sealed_record.h"

namespace vmshadow::store {

class RecordPlace {
 public:
  /// `pages`: how many the record holds if it is a page_group.
  [[nodiscard]] static RecordPlace of(format::JournalPosition position,
                                      const format::RecordPrefix& prefix, std::size_t pages = 0) {
    return at(position, prefix.body_bytes, prefix.head.epoch, pages,
              format::is_sealed(prefix.head.type));
  }
  /// `epoch` is what the record is labelled with.
  [[nodiscard]] static RecordPlace at(format::JournalPosition position, std::uint32_t body_bytes,
                                      Epoch epoch, std::size_t pages = 0, bool sealed = false) {
    RecordPlace place;
    place.segment_ = static_cast<std::uint32_t>(position.segment.value);
    place.unit_ = static_cast<std::uint32_t>(position.offset.value / format::kRecordAlignment);
    place.body_and_pages_ = body_bytes | static_cast<std::uint32_t>(pages) << kBodyBits |
                            static_cast<std::uint32_t>(sealed) << kSealedBit;
    place.epoch_low_ = static_cast<std::uint32_t>(epoch.value);
    place.epoch_high_ = static_cast<std::uint32_t>(epoch.value >> 32);
    return place;
  }

  [[nodiscard]] format::JournalPosition position() const { return {segment(), offset()}; }
  [[nodiscard]] SegmentId segment() const { return SegmentId{segment_}; }
  [[nodiscard]] SegmentOffset offset() const {
    return SegmentOffset{std::uint64_t{unit_} * format::kRecordAlignment};
  }
  [[nodiscard]] std::uint32_t body_bytes() const {
    return body_and_pages_ & ((std::uint32_t{1} << kBodyBits) - 1);
  }
  /// Prefix and body.
  [[nodiscard]] std::size_t record_bytes() const {
    return format::kRecordPrefixBytes + body_bytes();
  }
  [[nodiscard]] std::uint32_t pages() const {
    return body_and_pages_ >> kBodyBits & ((std::uint32_t{1} << kPagesBits) - 1);
  }
  [[nodiscard]] bool sealed() const { return body_and_pages_ >> kSealedBit != 0; }
  /// Of the body once it is opened.
  [[nodiscard]] std::size_t plain_bytes() const {
    return sealed() ? format::plain_body_bytes(body_bytes()) : body_bytes();
  }
  [[nodiscard]] Epoch epoch() const {
    return Epoch{(std::uint64_t{epoch_high_} << 32) | epoch_low_};
  }
  bool operator==(const RecordPlace&) const = default;

 private:
  static constexpr unsigned kBodyBits = 22;
  static constexpr unsigned kPagesBits = 5;
  static constexpr unsigned kSealedBit = 31;
  static_assert(format::kRecordBodyBytesMax < std::size_t{1} << kBodyBits);
  static_assert(format::kGroupPagesMax < std::size_t{1} << kPagesBits);
  static_assert(kBodyBits + kPagesBits <= kSealedBit);

  std::uint32_t segment_{};
  std::uint32_t unit_{};            ///< offset / kRecordAlignment
  std::uint32_t body_and_pages_{};  ///< and whether it is sealed
  std::uint32_t epoch_low_{};       ///< in halves, or the alignment would cost 4 bytes
  std::uint32_t epoch_high_{};
};
static_assert(sizeof(RecordPlace) == 20);
/// RecordPlace must hold every offset.
inline constexpr std::uint64_t kSegmentBytesMax = std::uint64_t{16} << 30;

}  // namespace vmshadow::store
