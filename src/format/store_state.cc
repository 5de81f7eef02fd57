#include "format/store_state.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/assert.h"

namespace vmshadow::format {
namespace {

constexpr std::uint16_t kFlagOwnPolicy = 1;
constexpr std::uint32_t kFlagFull = 1;
/// Seconds beyond this would overflow when turned into nanoseconds.
constexpr std::uint64_t kReachSecondsMax = std::uint64_t{1} << 33;

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

bool VmState::keeps(Epoch epoch) const {
  if (epoch >= next_epoch) return true;
  const auto after = std::upper_bound(kept.begin(), kept.end(), epoch,
                                      [](Epoch e, const KeptRange& r) { return e < r.first; });
  return after != kept.begin() && epoch <= std::prev(after)->last;
}

void append_body(std::vector<std::byte>& out, const VmState& state) {
  VMSHADOW_ASSERT(state.kept.size() <= kKeptRangesMax && state.pins.size() <= kPinsMax);
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
  if (std::max({state.window_s, state.minutely_s, state.hourly_s, state.daily_s}) >
      kReachSecondsMax) {
    return malformed("vm_state", "a policy that reaches too far back");
  }
  state.own_policy = (bytes.flags.get() & kFlagOwnPolicy) != 0;
  state.quota_bytes = bytes.quota_bytes.get();
  state.durable = {SegmentId{bytes.durable_segment.get()},
                   SegmentOffset{bytes.durable_offset.get()}};
  for (std::uint32_t i = 0; i < ranges; ++i) {
    KeptRangeBytes range;
    if (!reader.read(range)) return malformed("vm_state", "ends inside its ranges");
    const Epoch first{range.first.get()};
    const Epoch last{range.last.get()};
    if (first > last || last >= state.next_epoch ||
        (!state.kept.empty() && state.kept.back().last >= first)) {
      return malformed("vm_state", "its ranges do not rise");
    }
    state.kept.push_back({first, last});
  }
  for (std::uint32_t i = 0; i < pins; ++i) {
    le64 pin;
    if (!reader.read(pin)) return malformed("vm_state", "ends inside its pins");
    if (!state.pins.empty() && state.pins.back().value >= pin.get()) {
      return malformed("vm_state", "its pins do not rise");
    }
    state.pins.emplace_back(pin.get());
  }
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
    if (!reader.read(id) || id.get() == 0 ||
        (!replace.removed.empty() && replace.removed.back().value >= id.get())) {
      return malformed("replace", "what it removes does not rise");
    }
    replace.removed.emplace_back(id.get());
  }
  if (!read_entries(reader, bytes.added_count.get(), replace.added) || !reader.empty()) {
    return malformed("replace", "what it adds are not segments in rising order");
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

}  // namespace vmshadow::format
