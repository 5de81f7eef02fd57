// Pieces of epochs on their way into the log, and the memory they are gathered in, which is used
// again: new memory costs a page fault for each of its pages. Safe from any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

#include <vmshadow/types.h>

#include "store/epoch_index.h"

namespace vmshadow::store {

/// Whole records, each padded to the record alignment.
struct LogPiece {
  struct Record {
    std::uint32_t offset{};
    std::uint32_t body_bytes{};
    Placing placing;
  };
  std::vector<std::byte> bytes;
  std::vector<Record> records;  ///< those the index needs

  void add(ByteSpan record, Placing placing);
};

class LogPieces {
 public:
  /// An empty piece with room for about `bytes`, in memory that was used before if there is some.
  [[nodiscard]] LogPiece make(std::size_t bytes);
  /// Takes a piece's memory back.
  void give_back(LogPiece piece);
  [[nodiscard]] std::size_t kept_bytes() const;

 private:
  mutable std::mutex mutex_;
  std::vector<LogPiece> spare_;  ///< empty; their memory is used again
};

}  // namespace vmshadow::store
