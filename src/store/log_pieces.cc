#include "store/log_pieces.h"

#include <utility>

#include "format/record.h"

namespace vmshadow::store {
namespace {

/// Pieces whose memory is kept for the next ones.
constexpr std::size_t kSparePiecesMax = 128;

}  // namespace

void LogPiece::add(ByteSpan record, Placing placing) {
  if (placing.list != PlaceList::none) {
    records.push_back({static_cast<std::uint32_t>(bytes.size()),
                       static_cast<std::uint32_t>(record.size() - format::kRecordPrefixBytes),
                       placing});
  }
  format::append_bytes(bytes, record);
  bytes.resize(bytes.size() + format::alignment_gap(bytes.size()));
}

LogPiece LogPieces::make(std::size_t bytes) {
  LogPiece piece;
  {
    const std::lock_guard lock(mutex_);
    if (!spare_.empty()) {
      piece = std::move(spare_.back());
      spare_.pop_back();
    }
  }
  piece.bytes.reserve(bytes);
  return piece;
}

void LogPieces::give_back(LogPiece piece) {
  piece.bytes.clear();
  piece.records.clear();
  const std::lock_guard lock(mutex_);
  if (piece.bytes.capacity() > 0 && spare_.size() < kSparePiecesMax) {
    spare_.push_back(std::move(piece));
  }
}

std::size_t LogPieces::kept_bytes() const {
  const std::lock_guard lock(mutex_);
  std::size_t bytes = 0;
  for (const LogPiece& piece : spare_) bytes += piece.bytes.capacity();
  return bytes;
}

}  // namespace vmshadow::store
