#include "format/store_state.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>

#include "base/assert.h"

namespace vmshadow::format {
namespace {

constexpr std::uint16_t kFlagOwnPolicy = 1;
constexpr std::uint32_t kFlagFull = 1;

tl::unexpected<Error> malformed(std::string_view record, std::string_view what) {
  return fail(Errc::corrupt, fmt::format("malformed {} record: {}", record, what));
}

std::uint64_t unsigned_ns(WallTime time) { return static_cast<std::uint64_t>(time.ns); }
WallTime wall_time(const le64& ns) { return WallTime{static_cast<std::int64_t>(ns.get())}; }

void append_entries(std::vector<std::byte>& out, const std::vector<SegmentEntry>& entries) {
  for (const SegmentEntry& entry : entries) {
    SegmentEntryBytes bytes{};
    bytes.segment = entry.segment.value;
    bytes.bytes = entry.bytes;
    bytes.kind = static_cast<std::uint16_t>(entry.kind);
    append_struct(out, bytes);
  }
}

/// Reads `count` entries, whose numbers must rise. `count` is bounded by the body it came in.
bool read_entries(BodyReader& reader, std::uint32_t count, std::vector<SegmentEntry>& entries) {
  if (reader.rest().size() / sizeof(SegmentEntryBytes) < count) return false;
  entries.reserve(count);
  for (std::uint32_t i = 0; i < count; ++i) {
    SegmentEntryBytes bytes;
    if (!reader.read(bytes) || bytes.reserved16.get() != 0 || bytes.reserved32.get() != 0) {
      return false;
    }
    const auto kind = static_cast<SegmentKind>(bytes.kind.get());
    if (kind != SegmentKind::journal && kind != SegmentKind::archive) return false;
    const SegmentId id{bytes.segment.get()};
    if (id.value == 0 || (!entries.empty() && entries.back().segment >= id)) return false;
    entries.push_back({id, bytes.bytes.get(), kind});
  }
  return true;
}

}  // namespace

namespace {

bool ranges_rise(const VmState& state) {
  const KeptRange* before = nullptr;
  for (const KeptRange& range : state.kept) {
    if (range.first > range.last || range.last >= state.next_epoch) return false;
    if (before != nullptr && before->last >= range.first) return false;
    before = &range;
  }
  return true;
}

template <class T>
bool strictly_rises(const std::vector<T>& values) {
  return std::adjacent_find(values.begin(), values.end(), std::greater_equal<>()) == values.end();
}

bool policy_is_in_bounds(const VmState& state) {
  return std::max({state.window_s, state.minutely_s, state.hourly_s, state.daily_s}) <=
         kReachSecondsMax;
}

/// Only archives are added, and nothing that is removed.
bool adds_are_new_archives(const Replace& replace) {
  return std::all_of(replace.added.begin(), replace.added.end(), [&](const SegmentEntry& added) {
    return added.kind == SegmentKind::archive &&
           !std::binary_search(replace.removed.begin(), replace.removed.end(), added.segment);
  });
}

}  // namespace

bool VmState::keeps(Epoch epoch) const {
  if (epoch >= next_epoch) return true;
  const auto after = std::upper_bound(kept.begin(), kept.end(), epoch,
                                      [](Epoch e, const KeptRange& r) { return e < r.first; });
  return after != kept.begin() && epoch <= std::prev(after)->last;
}

void append_body(std::vector<std::byte>& out, const VmState& state) {
  VMSHADOW_ASSERT(state.kept.size() <= kKeptRangesMax && state.pins.size() <= kPinsMax);
  VMSHADOW_ASSERT(ranges_rise(state) && strictly_rises(state.pins));
  VMSHADOW_ASSERT(policy_is_in_bounds(state) && is_valid_vm_name(state.vm_name));
  VmStateBytes bytes{};
  bytes.version = state.version;
  bytes.next_epoch = state.next_epoch.value;
  bytes.window_s = state.window_s;
  bytes.minutely_s = state.minutely_s;
  bytes.hourly_s = state.hourly_s;
  bytes.daily_s = state.daily_s;
  bytes.quota_bytes = state.quota_bytes;
  bytes.range_count = static_cast<std::uint32_t>(state.kept.size());
  bytes.pin_count = static_cast<std::uint32_t>(state.pins.size());
  bytes.name_bytes = static_cast<std::uint16_t>(state.vm_name.size());
  bytes.flags = state.own_policy ? kFlagOwnPolicy : std::uint16_t{0};
  bytes.durable_segment = state.durable.segment.value;
  bytes.durable_offset = state.durable.offset.value;
  append_struct(out, bytes);
  for (const KeptRange& range : state.kept) {
    append_struct(out, KeptRangeBytes{le64(range.first.value), le64(range.last.value)});
  }
  for (const Epoch pin : state.pins) append_struct(out, le64(pin.value));
  append_bytes(out, std::as_bytes(std::span(state.vm_name)));
}

Result<VmState> decode_vm_state(ByteSpan body) {
  BodyReader reader(body);
  VmStateBytes bytes;
  if (!reader.read(bytes)) return malformed("vm_state", "shorter than its head");
  const std::uint32_t ranges = bytes.range_count.get();
  const std::uint32_t pins = bytes.pin_count.get();
  if (ranges > kKeptRangesMax || pins > kPinsMax) return malformed("vm_state", "too many epochs");
  if ((bytes.flags.get() & ~kFlagOwnPolicy) != 0 || bytes.reserved.get() != 0) {
    return malformed("vm_state", "reserved bits are not 0");
  }
  VmState state;
  state.version = bytes.version.get();
  state.next_epoch = Epoch{bytes.next_epoch.get()};
  state.window_s = bytes.window_s.get();
  state.minutely_s = bytes.minutely_s.get();
  state.hourly_s = bytes.hourly_s.get();
  state.daily_s = bytes.daily_s.get();
  if (!policy_is_in_bounds(state)) {
    return malformed("vm_state", "a policy that reaches too far back");
  }
  state.own_policy = (bytes.flags.get() & kFlagOwnPolicy) != 0;
  state.quota_bytes = bytes.quota_bytes.get();
  state.durable = {SegmentId{bytes.durable_segment.get()},
                   SegmentOffset{bytes.durable_offset.get()}};
  for (std::uint32_t i = 0; i < ranges; ++i) {
    KeptRangeBytes range;
    if (!reader.read(range)) return malformed("vm_state", "ends inside its ranges");
    state.kept.push_back({Epoch{range.first.get()}, Epoch{range.last.get()}});
  }
  if (!ranges_rise(state)) return malformed("vm_state", "its ranges do not rise");
  for (std::uint32_t i = 0; i < pins; ++i) {
    le64 pin;
    if (!reader.read(pin)) return malformed("vm_state", "ends inside its pins");
    state.pins.emplace_back(pin.get());
  }
  if (!strictly_rises(state.pins)) return malformed("vm_state", "its pins do not rise");
  ByteSpan name;
  if (!reader.read_bytes(bytes.name_bytes.get(), name) || !reader.empty()) {
    return malformed("vm_state", "its length does not match its counts");
  }
  state.vm_name.assign(reinterpret_cast<const char*>(name.data()), name.size());
  if (!is_valid_vm_name(state.vm_name)) return malformed("vm_state", "not a VM's name");
  return state;
}

void append_body(std::vector<std::byte>& out, const SegmentList& list) {
  VMSHADOW_ASSERT(list.segments.size() <= kSegmentEntriesMax);
  SegmentListBytes bytes{};
  bytes.count = static_cast<std::uint32_t>(list.segments.size());
  bytes.vm_count = list.vm_count;
  append_struct(out, bytes);
  append_entries(out, list.segments);
}

Result<SegmentList> decode_segment_list(ByteSpan body) {
  BodyReader reader(body);
  SegmentListBytes bytes;
  SegmentList list;
  if (!reader.read(bytes) || !read_entries(reader, bytes.count.get(), list.segments) ||
      !reader.empty()) {
    return malformed("segment_list", "its entries are not segments in rising order");
  }
  list.vm_count = bytes.vm_count.get();
  return list;
}

void append_body(std::vector<std::byte>& out, const Replace& replace) {
  VMSHADOW_ASSERT(strictly_rises(replace.removed) && adds_are_new_archives(replace));
  ReplaceBytes bytes{};
  bytes.removed_count = static_cast<std::uint32_t>(replace.removed.size());
  bytes.added_count = static_cast<std::uint32_t>(replace.added.size());
  bytes.durable_segment = replace.durable.segment.value;
  bytes.durable_offset = replace.durable.offset.value;
  append_struct(out, bytes);
  for (const SegmentId id : replace.removed) append_struct(out, le64(id.value));
  append_entries(out, replace.added);
}

Result<Replace> decode_replace(ByteSpan body) {
  BodyReader reader(body);
  ReplaceBytes bytes;
  if (!reader.read(bytes)) return malformed("replace", "shorter than its head");
  const std::uint32_t removed = bytes.removed_count.get();
  if (reader.rest().size() / sizeof(le64) < removed) return malformed("replace", "too short");
  Replace replace;
  replace.durable = {SegmentId{bytes.durable_segment.get()},
                     SegmentOffset{bytes.durable_offset.get()}};
  replace.removed.reserve(removed);
  for (std::uint32_t i = 0; i < removed; ++i) {
    le64 id;
    if (!reader.read(id)) return malformed("replace", "too short");
    replace.removed.emplace_back(id.get());
  }
  if ((removed > 0 && replace.removed.front().value == 0) || !strictly_rises(replace.removed)) {
    return malformed("replace", "what it removes does not rise");
  }
  if (!read_entries(reader, bytes.added_count.get(), replace.added) || !reader.empty()) {
    return malformed("replace", "what it adds are not segments in rising order");
  }
  if (!adds_are_new_archives(replace)) {
    return malformed("replace", "what it adds are not archives, or it removes them too");
  }
  return replace;
}

void append_body(std::vector<std::byte>& out, const ArchivedEpoch& epoch) {
  ArchivedEpochBytes bytes{};
  bytes.committed_wall_ns = unsigned_ns(epoch.committed_wall);
  bytes.cut_wall_ns = unsigned_ns(epoch.cut_wall);
  bytes.pages = epoch.pages;
  bytes.stored_bytes = epoch.stored_bytes;
  bytes.device_bytes = epoch.device_bytes;
  bytes.flags = epoch.full ? kFlagFull : 0;
  append_struct(out, bytes);
}

Result<ArchivedEpoch> decode_archived_epoch(ByteSpan body) {
  BodyReader reader(body);
  ArchivedEpochBytes bytes;
  if (!reader.read(bytes) || !reader.empty()) return malformed("archived_epoch", "wrong length");
  if ((bytes.flags.get() & ~kFlagFull) != 0 || bytes.reserved.get() != 0) {
    return malformed("archived_epoch", "reserved bits are not 0");
  }
  if (bytes.device_bytes.get() > kDeviceStateBytesMax) {
    return malformed("archived_epoch", "too much device state");
  }
  ArchivedEpoch epoch;
  epoch.committed_wall = wall_time(bytes.committed_wall_ns);
  epoch.cut_wall = wall_time(bytes.cut_wall_ns);
  epoch.pages = bytes.pages.get();
  epoch.stored_bytes = bytes.stored_bytes.get();
  epoch.device_bytes = bytes.device_bytes.get();
  epoch.full = (bytes.flags.get() & kFlagFull) != 0;
  return epoch;
}

void append_body(std::vector<std::byte>& out, const Loss& loss) {
  VMSHADOW_ASSERT(loss.what.size() <= kLostTextBytesMax);
  LossBytes bytes{};
  bytes.segment = loss.at.segment.value;
  bytes.offset = loss.at.offset.value;
  bytes.bytes = loss.bytes;
  bytes.kind = static_cast<std::uint16_t>(loss.kind);
  bytes.text_bytes = static_cast<std::uint16_t>(loss.what.size());
  append_struct(out, bytes);
  append_bytes(out, std::as_bytes(std::span(loss.what)));
}

Result<Loss> decode_loss(ByteSpan body) {
  BodyReader reader(body);
  LossBytes bytes;
  if (!reader.read(bytes)) return malformed("loss", "shorter than its head");
  Loss loss;
  loss.at = {SegmentId{bytes.segment.get()}, SegmentOffset{bytes.offset.get()}};
  loss.bytes = bytes.bytes.get();
  loss.kind = static_cast<LossKind>(bytes.kind.get());
  if (loss.kind != LossKind::own && loss.kind != LossKind::base) {
    return malformed("loss", "of a kind that is not known");
  }
  if (bytes.reserved.get() != 0) return malformed("loss", "reserved bits are not 0");
  ByteSpan text;
  if (bytes.text_bytes.get() > kLostTextBytesMax ||
      !reader.read_bytes(bytes.text_bytes.get(), text) || !reader.empty()) {
    return malformed("loss", "its length does not match its text");
  }
  loss.what.assign(reinterpret_cast<const char*>(text.data()), text.size());
  return loss;
}

}  // namespace vmshadow::format
