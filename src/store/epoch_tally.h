// What an epoch's records add up to, taken one by one: order, chain, counts, pages, machine. Used
// on the way in, where a deviation refuses the epoch, and by recovery, where it is damage.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include <vmshadow/machine.h>
#include <vmshadow/result.h>
#include <vmshadow/types.h>

#include "format/epoch_records.h"
#include "format/record.h"
#include "format/sealed_record.h"
#include "store/page_table.h"

namespace vmshadow::store {

using MachinePtr = std::shared_ptr<const MachineDescription>;

/// Where records of one type go in an epoch's lists.
enum class PlaceList { none, group, zeros, device, machine };
struct Placing {
  PlaceList list{};
  std::uint32_t pages{};  ///< of a group
  bool sealed{};
};

class EpochTally {
 public:
  /// `machine` is that of the generation's last full epoch, or null if it is not known; pages must
  /// lie inside its layout. A full epoch brings its own.
  explicit EpochTally(MachinePtr machine) : machine_(std::move(machine)) {}

  /// Takes the next record, whose checksums hold, or that a whole skeleton repeats: `front` is at
  /// least what format::skeleton_meta_bytes() says of its body. Errc::protocol for a record out of
  /// order or of a wrong type, Errc::corrupt for a malformed body. The tally is of no use after an
  /// error.
  [[nodiscard]] Result<Placing> add(const format::RecordPrefix& prefix, ByteSpan front);
  /// Counts a record whose body is lost but whose prefix is known.
  void add_damaged(const format::RecordPrefix& prefix);
  /// Compares with what the sender says it sent. Errc::protocol names what differs.
  [[nodiscard]] Status check(const format::RecordPrefix& end,
                             const format::EpochSummary& summary) const;

  [[nodiscard]] std::uint32_t next_sequence() const { return next_sequence_; }
  /// Carries on behind lost records: the chain will not match.
  void skip_to(std::uint32_t sequence) { next_sequence_ = sequence; }
  /// The records before `sequence` were archived: what is left cannot be held to counts and chain.
  void start_partial(std::uint32_t sequence) {
    next_sequence_ = sequence;
    partial_ = true;
  }
  [[nodiscard]] bool partial() const { return partial_; }
  [[nodiscard]] std::uint64_t chain() const { return chain_; }
  [[nodiscard]] bool full() const { return full_; }
  [[nodiscard]] std::uint64_t record_bytes() const { return record_bytes_; }
  [[nodiscard]] std::uint64_t stored_pages() const { return stored_pages_; }
  [[nodiscard]] std::uint64_t device_bytes() const { return device_bytes_; }
  /// Null as well where it is sealed.
  [[nodiscard]] const MachinePtr& machine() const { return machine_; }
  /// Of the key its records are sealed with; nullopt: none is sealed.
  [[nodiscard]] const std::optional<format::KeyId>& key_id() const { return key_id_; }
  [[nodiscard]] PageTable take_pages() { return pages_.finish(); }

 private:
  void count(const format::RecordPrefix& prefix);
  Status add_sealed_front(ByteSpan front);
  Status add_machine(ByteSpan body);
  Result<std::uint32_t> add_group(std::uint32_t sequence, const format::PageGroup& group);
  Status add_zero_pages(std::uint32_t sequence, ByteSpan body);
  [[nodiscard]] Status check_inside(format::PageKey first, std::uint64_t count) const;

  MachinePtr machine_;
  std::optional<format::KeyId> key_id_;
  PageTable::Builder pages_;
  std::uint32_t next_sequence_ = 0;
  std::uint32_t groups_ = 0;
  bool full_ = false;
  bool partial_ = false;
  std::uint64_t chain_ = 0;
  std::uint64_t record_bytes_ = 0;
  std::uint64_t stored_pages_ = 0;
  std::uint64_t zero_pages_ = 0;
  std::uint64_t device_bytes_ = 0;
};

}  // namespace vmshadow::store
