// Turns an epoch's captured pages into records: drops unchanged pages, gathers zero pages into
// runs, compresses the rest in groups. Pure: bytes in, bytes out. Used by one thread.
//
//   begin ─► add* ─► end        (each appends whole records to `out`, ready to ship in order)
//
// Within an epoch the later record wins, so a page that occurs twice in a full pass never has its
// older bytes behind its newer ones.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include <vmshadow/page_sink.h>
#include <vmshadow/result.h>
#include <vmshadow/types.h>

#include "base/hash.h"
#include "format/epoch_records.h"

namespace vmshadow::delta {

struct EncodeStats {
  std::uint64_t captured_pages{};   ///< given to add()
  std::uint64_t unchanged_pages{};  ///< dropped: same bytes as last encoded
  std::uint64_t zero_pages{};       ///< stored in runs
  std::uint64_t data_pages{};       ///< stored in groups
  std::uint64_t record_bytes{};     ///< everything appended to `out`, prefixes included
};

class EpochEncoder {
 public:
  /// Records are made for this VM and generation. Keeps 16 bytes per guest page.
  EpochEncoder(PageHasher hasher, VmId vm, Generation generation);
  ~EpochEncoder();
  EpochEncoder(EpochEncoder&&) noexcept;

  /// lz4's acceleration from here on: 1 at first, more for less work and less compression.
  void set_acceleration(int acceleration);
  /// Opens an epoch. A full one forgets all earlier pages and starts with the machine record; the
  /// first epoch ever must be full.
  void begin(const EpochBegin& begin, std::vector<std::byte>& out);
  /// Pages must lie inside the layout given with the full epoch (asserted: capture has checked).
  void add(const PageBatch& batch, std::vector<std::byte>& out);
  /// Closes the epoch: what was gathered, the device state in pieces, and the epoch_end record.
  EncodeStats end(const EpochEnd& end, std::vector<std::byte>& out);
  /// Drops the open epoch. The next one must be full: the far side no longer has what we think.
  void abandon();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace vmshadow::delta
