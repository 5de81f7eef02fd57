// Encrypts an epoch's records on their way into the journal, and makes the numbers that the journal
// holds them to: the chain and the bytes of what is stored, in place of those the sidecar counted
// over what it sent (which were checked on the way in).
#pragma once

#include <cstdint>
#include <vector>

#include <vmshadow/result.h>
#include <vmshadow/types.h>

#include "crypt/vm_key.h"
#include "format/epoch_records.h"
#include "format/record.h"

namespace vmshadow::store {

class EpochSealer {
 public:
  /// The first of `keys` seals.
  explicit EpochSealer(crypt::VmKeysPtr keys) : keys_(std::move(keys)) {}

  /// The record as it is to be stored, valid until the next call: sealed, or unchanged if it holds
  /// nothing of the guest. Errc::protocol if it is too long to be sealed.
  [[nodiscard]] Result<ByteSpan> add(const format::RecordPrefix& prefix, ByteSpan record);
  /// The epoch_end that belongs to what is stored; likewise.
  [[nodiscard]] ByteSpan end(const format::RecordPrefix& prefix, format::EpochSummary summary);

  [[nodiscard]] const format::KeyId& key_id() const { return keys_->front().id(); }
  [[nodiscard]] std::uint64_t chain() const { return chain_; }
  [[nodiscard]] std::uint64_t record_bytes() const { return record_bytes_; }

 private:
  const crypt::VmKeysPtr keys_;
  std::vector<std::byte> sealed_;
  std::uint64_t chain_ = 0;
  std::uint64_t record_bytes_ = 0;
};

}  // namespace vmshadow::store
