#include "store/epoch_tally.h"

#include <fmt/format.h>

namespace vmshadow::store {

using format::RecordType;

namespace {

/// More pages than any layout has, by far: keeps the sums from wrapping.
constexpr std::uint64_t kPagesMax = std::uint64_t{1} << 62;

}  // namespace

void EpochTally::count(const format::RecordPrefix& prefix) {
  ++next_sequence_;
  chain_ = format::extend_chain(chain_, prefix.prefix_checksum);
  record_bytes_ += format::kRecordPrefixBytes + prefix.body_bytes;
}

Result<Placing> EpochTally::add(const format::RecordPrefix& prefix, ByteSpan front) {
  const std::uint32_t sequence = prefix.head.sequence;
  if (sequence != next_sequence_) {
    return fail(Errc::protocol, fmt::format("record {} of the epoch comes where record {} belongs",
                                            sequence, next_sequence_));
  }
  Placing placing;
  placing.sealed = format::is_sealed(prefix.head.type);
  if (placing.sealed) VMSHADOW_TRY(add_sealed_front(front));
  switch (format::plain_type(prefix.head.type)) {
    case RecordType::machine:
      if (sequence != 0) {
        return fail(Errc::protocol, fmt::format("a machine record comes as record {}, but only the "
                                                "first of a full epoch may be one",
                                                sequence));
      }
      if (placing.sealed) {
        full_ = true;
        machine_ = nullptr;
      } else {
        VMSHADOW_TRY(add_machine(front));
      }
      placing.list = PlaceList::machine;
      break;
    case RecordType::page_group: {
      VMSHADOW_ASSIGN(const auto group, placing.sealed ? format::decode_sealed_group_keys(front)
                                                       : format::decode_page_group_keys(front));
      VMSHADOW_ASSIGN(placing.pages, add_group(sequence, group));
      placing.list = PlaceList::group;
      break;
    }
    case RecordType::zero_pages:
      VMSHADOW_TRY(add_zero_pages(sequence, front));
      placing.list = PlaceList::zeros;
      break;
    case RecordType::device_state: {
      const std::size_t bytes =
          placing.sealed ? format::plain_body_bytes(prefix.body_bytes) : prefix.body_bytes;
      device_bytes_ += bytes;
      if (bytes == 0 || device_bytes_ > kDeviceStateBytesMax) {
        return fail(Errc::corrupt,
                    fmt::format("device state is empty or over {} bytes", kDeviceStateBytesMax));
      }
      placing.list = PlaceList::device;
      break;
    }
    default:
      return fail(Errc::protocol, fmt::format("a record of type {:#05x} is not part of an epoch",
                                              static_cast<unsigned>(prefix.head.type)));
  }
  count(prefix);
  return placing;
}

void EpochTally::add_damaged(const format::RecordPrefix& prefix) {
  if (format::plain_type(prefix.head.type) == RecordType::machine) {
    full_ = true;
    machine_ = nullptr;
  }
  count(prefix);
}

Status EpochTally::add_machine(ByteSpan body) {
  VMSHADOW_ASSIGN(MachineDescription machine, format::decode_machine(body));
  machine_ = std::make_shared<const MachineDescription>(std::move(machine));
  full_ = true;
  return {};
}

Status EpochTally::add_sealed_front(ByteSpan front) {
  VMSHADOW_ASSIGN(const format::SealedFront sealed, format::decode_sealed_front(front));
  key_id_ = sealed.key_id;
  return {};
}

Result<std::uint32_t> EpochTally::add_group(std::uint32_t sequence,
                                            const format::PageGroup& group) {
  for (std::size_t i = 0; i < group.page_count; ++i) VMSHADOW_TRY(check_inside(group.keys[i], 1));
  pages_.add_group(groups_++, sequence, group);
  stored_pages_ += group.page_count;
  return static_cast<std::uint32_t>(group.page_count);
}

Status EpochTally::add_zero_pages(std::uint32_t sequence, ByteSpan body) {
  VMSHADOW_ASSIGN(const auto runs, format::decode_zero_pages(body));
  for (const format::ZeroRun& run : runs) {
    VMSHADOW_TRY(check_inside(run.first, run.count));
    stored_pages_ += run.count;
    zero_pages_ += run.count;
    if (stored_pages_ > kPagesMax) return fail(Errc::corrupt, "more pages than any VM has");
  }
  pages_.add_zero_runs(sequence, runs);
  return {};
}

Status EpochTally::check_inside(format::PageKey first, std::uint64_t count) const {
  if (machine_ == nullptr) return {};
  if (first.block.value < machine_->block_count()) {
    const std::uint64_t pages = machine_->block(first.block).pages;
    if (count <= pages && first.page.value <= pages - count) return {};
  }
  return fail(Errc::corrupt,
              fmt::format("page {} of block {} is outside the machine's RAM and disks",
                          first.page.value, first.block.value));
}

Status EpochTally::check(const format::RecordPrefix& end,
                         const format::EpochSummary& summary) const {
  const auto differ = [](std::string_view what, auto got, auto said) {
    return fail(Errc::protocol, fmt::format("the epoch's records do not match its epoch_end: {} is "
                                            "{}, epoch_end says {}",
                                            what, got, said));
  };
  if (end.head.sequence != next_sequence_) {
    return differ("the sequence", next_sequence_, end.head.sequence);
  }
  if (summary.record_count != next_sequence_) {
    return differ("the record count", next_sequence_, summary.record_count);
  }
  if (partial_) return {};
  if (summary.chain != chain_) {
    return differ("the chain", fmt::format("{:016x}", chain_),
                  fmt::format("{:016x}", summary.chain));
  }
  if (summary.full != full_) return differ("the full flag", full_, summary.full);
  if (summary.stored_pages != stored_pages_) {
    return differ("the page count", stored_pages_, summary.stored_pages);
  }
  if (summary.zero_pages != zero_pages_) {
    return differ("the zero page count", zero_pages_, summary.zero_pages);
  }
  if (summary.record_bytes != record_bytes_) {
    return differ("the record bytes", record_bytes_, summary.record_bytes);
  }
  if (summary.device_bytes != device_bytes_) {
    return differ("the device state's bytes", device_bytes_, summary.device_bytes);
  }
  return {};
}

}  // namespace vmshadow::store
