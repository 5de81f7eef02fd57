// Records in which a store says what it keeps, and skeletons: for all values, decode(encode(x)) =
// x, and what a skeleton holds is what the records say.
#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <cstring>
#include <set>

#include "format/epoch_records.h"
#include "format/skeleton.h"
#include "format/store_state.h"

namespace vmshadow::format {
namespace {

using Bytes = std::vector<std::byte>;

/// A body without its last byte, or with one more, is another body: it must not be taken for this.
template <class T, class Decode>
void check_round_trip(const T& value, const Decode& decode) {
  Bytes body;
  append_body(body, value);
  const auto decoded = decode(body);
  RC_ASSERT(decoded.has_value());
  RC_ASSERT(*decoded == value);
  RC_ASSERT(!decode(ByteSpan(body).first(body.size() - 1)));
  body.push_back(std::byte{0});
  RC_ASSERT(!decode(body));
}

/// Numbers of all magnitudes, distinct and rising.
std::vector<std::uint64_t> rising(std::uint64_t lowest) {
  auto numbers = *rc::gen::container<std::set<std::uint64_t>>(
      rc::gen::oneOf(rc::gen::inRange<std::uint64_t>(0, 60), rc::gen::arbitrary<std::uint64_t>()));
  numbers.erase(numbers.begin(), numbers.lower_bound(lowest));
  return {numbers.begin(), numbers.end()};
}

JournalPosition any_position() {
  return {SegmentId{*rc::gen::arbitrary<std::uint64_t>()},
          SegmentOffset{*rc::gen::arbitrary<std::uint64_t>()}};
}

VmState any_vm_state() {
  const auto number = rc::gen::arbitrary<std::uint64_t>();
  const auto reach = rc::gen::inRange<std::uint64_t>(0, kReachSecondsMax + 1);
  VmState state;
  state.version = *number;
  state.vm_name = *rc::gen::element<std::string>("a", "web-1.eu_x", std::string(128, 'z'));
  state.window_s = *reach;
  state.minutely_s = *reach;
  state.hourly_s = *reach;
  state.daily_s = *reach;
  state.own_policy = *rc::gen::arbitrary<bool>();
  state.quota_bytes = *number;
  const std::vector<std::uint64_t> ends = rising(0);
  for (std::size_t i = 0; i + 2 < ends.size(); i += 2) {
    state.kept.push_back({Epoch{ends[i]}, Epoch{ends[i + 1]}});
  }
  state.next_epoch = Epoch{ends.empty() ? *number : ends.back()};
  for (const std::uint64_t pin : rising(0)) state.pins.emplace_back(pin);
  state.durable = any_position();
  return state;
}

RC_GTEST_PROP(VmStateProperty, RoundTrips, ()) {
  check_round_trip(any_vm_state(), decode_vm_state);
}

RC_GTEST_PROP(VmStateProperty, KeepsIsWhatItsRangesSay, ()) {
  const VmState state = any_vm_state();
  const Epoch epoch{*rc::gen::inRange<std::uint64_t>(0, 64)};
  const bool in_a_range =
      std::any_of(state.kept.begin(), state.kept.end(),
                  [&](const KeptRange& r) { return r.first <= epoch && epoch <= r.last; });
  RC_ASSERT(state.keeps(epoch) == (in_a_range || epoch >= state.next_epoch));
}

SegmentEntry any_entry(std::uint64_t id, SegmentKind kind) {
  return {SegmentId{id}, *rc::gen::arbitrary<std::uint64_t>(), kind};
}

RC_GTEST_PROP(SegmentListProperty, RoundTrips, ()) {
  SegmentList list;
  list.vm_count = *rc::gen::arbitrary<std::uint32_t>();
  for (const std::uint64_t id : rising(1)) {
    list.segments.push_back(
        any_entry(id, *rc::gen::element(SegmentKind::journal, SegmentKind::archive)));
  }
  check_round_trip(list, decode_segment_list);
}

RC_GTEST_PROP(ReplaceProperty, RoundTrips, ()) {
  Replace replace;
  for (const std::uint64_t id : rising(1)) {
    if (*rc::gen::arbitrary<bool>()) {
      replace.removed.emplace_back(id);
    } else {
      replace.added.push_back(any_entry(id, SegmentKind::archive));
    }
  }
  replace.durable = any_position();
  check_round_trip(replace, decode_replace);
}

RC_GTEST_PROP(JournalProperty, MarkRoundTrips, ()) {
  Mark mark{any_position(), {}, *rc::gen::arbitrary<std::uint64_t>(), any_position()};
  for (std::byte& byte : mark.salt) byte = static_cast<std::byte>(*rc::gen::inRange(0, 256));
  Bytes body;
  append_body(body, mark);
  RC_ASSERT(*decode_mark(body) == mark);
}

/// A record of some type with a body of that type's form: what its meta is depends on it.
Bytes any_record() {
  const RecordHead head{
      *rc::gen::element(RecordType::machine, RecordType::page_group, RecordType::zero_pages,
                        RecordType::device_state, RecordType::epoch_end, RecordType::commit,
                        RecordType::vm_state, RecordType::pad, RecordType::mark),
      *rc::gen::arbitrary<std::uint32_t>(), vm_id("web1"),
      Generation{*rc::gen::arbitrary<std::uint64_t>()},
      Epoch{*rc::gen::arbitrary<std::uint64_t>()}};
  Bytes body;
  if (head.type == RecordType::page_group && *rc::gen::arbitrary<bool>()) {
    std::vector<PageKey> keys;
    const auto pages = *rc::gen::inRange<std::uint64_t>(1, kGroupPagesMax + 1);
    for (std::uint64_t i = 0; i < pages; ++i) keys.push_back({BlockIndex{2}, PageNumber{i}});
    append_page_group_body(body, Codec::lz4, keys, std::vector<std::uint64_t>(pages), Bytes(99));
  } else if (*rc::gen::inRange(0, 10) == 0) {
    body.resize(*rc::gen::inRange<std::size_t>(0, kRecordBodyBytesMax + 1), std::byte{2});
  } else {
    for (const int byte : *rc::gen::container<std::vector<int>>(rc::gen::inRange(0, 256))) {
      body.push_back(static_cast<std::byte>(byte));
    }
  }
  Bytes record;
  append_record(record, head, body);
  return record;
}

void check_entry(const SkeletonEntry& entry, std::uint64_t offset, const Bytes& record) {
  RC_ASSERT(entry.offset == offset);
  const auto prefix = decode_prefix(record);
  RC_ASSERT(entry.prefix.prefix_checksum == prefix->prefix_checksum);
  const ByteSpan body = ByteSpan(record).subspan(kRecordPrefixBytes);
  const ByteSpan meta = body.first(skeleton_meta_bytes(prefix->head.type, body));
  RC_ASSERT(entry.meta.has_value() == (meta.size() <= kSkeletonBodyBytes / 2));
  if (entry.meta) {
    RC_ASSERT(std::equal(entry.meta->begin(), entry.meta->end(), meta.begin(), meta.end()));
  }
}

RC_GTEST_PROP(SkeletonProperty, HoldsTheRecordsInOrder, ()) {
  SkeletonWriter writer;
  std::vector<std::pair<std::uint64_t, Bytes>> expected;
  std::uint64_t offset = kSegmentHeadBytes;
  const auto count = *rc::gen::inRange(0, 20);
  for (int i = 0; i < count; ++i) {
    const Bytes record = any_record();
    writer.add(offset, record);
    const RecordType type = decode_prefix(record)->head.type;
    if (type != RecordType::pad && type != RecordType::mark) expected.emplace_back(offset, record);
    offset += record.size();
    offset += alignment_gap(offset);
  }
  RC_ASSERT(writer.record_count() == expected.size());
  std::size_t i = 0;
  for (const Bytes& body : writer.take()) {
    RC_ASSERT(for_each_skeleton_entry(body, [&](const SkeletonEntry& entry) {
                RC_ASSERT(i < expected.size());
                check_entry(entry, expected[i].first, expected[i].second);
                ++i;
              }).has_value());
  }
  RC_ASSERT(i == expected.size());
}

}  // namespace
}  // namespace vmshadow::format
