#include "store/epoch_sealer.h"

#include <fmt/format.h>

#include "crypt/sealed_record.h"

namespace vmshadow::store {

Result<ByteSpan> EpochSealer::add(const format::RecordPrefix& prefix, ByteSpan record) {
  ByteSpan stored = record;
  std::uint64_t sum = prefix.prefix_checksum;
  if (format::is_sealable(prefix.head.type)) {
    const ByteSpan body = record.subspan(format::kRecordPrefixBytes);
    if (body.size() > format::kSealablePlainBytesMax) {
      return fail(Errc::protocol,
                  fmt::format("a record of {} bytes is too long to be encrypted: at most {}",
                              body.size(), format::kSealablePlainBytesMax));
    }
    VMSHADOW_ASSIGN(const crypt::Nonce nonce, crypt::random_nonce());
    sealed_.clear();
    sum = crypt::seal_record(keys_->front(), nonce, prefix.head, body, sealed_);
    stored = sealed_;
  }
  chain_ = format::extend_chain(chain_, sum);
  record_bytes_ += stored.size();
  return stored;
}

ByteSpan EpochSealer::end(const format::RecordPrefix& prefix, format::EpochSummary summary) {
  summary.chain = chain_;
  summary.record_bytes = record_bytes_;
  sealed_.clear();
  const std::size_t start = format::begin_record(sealed_);
  format::append_epoch_end_body(sealed_, summary);
  format::finish_record(sealed_, start, prefix.head);
  return sealed_;
}

}  // namespace vmshadow::store
