// Turns an epoch's captured pages into records: drops unchanged RAM pages, gathers zero pages into
// runs, compresses the rest in groups. Pure: bytes in, bytes out. Used by one thread.
//
// Of a disk nothing is remembered: its pages come because they were written, and 16 bytes for each
// of a disk's pages would be more than many a guest's RAM.
//
//   begin ─► add* ─► end        (each appends whole records to `out`, ready to ship in order)
//
// Within an epoch the later record wins, so a page that occurs twice in a full pass never has its
// older bytes behind its newer ones.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include <vmshadow/machine.h>
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
  bool full{};                      ///< it needs no epoch before it
};

/// A committed epoch that the far side holds: what the first full pass is compared with, so that
/// only what changed since is stored.
struct KnownEpoch {
  Epoch epoch;
  Generation generation;  ///< its records' label
  MachineDescription machine;
  /// By block and page of machine.layout: made with the encoder's own hasher; {} for a zero page.
  std::vector<std::vector<PageHash>> hashes;
};

class EpochEncoder {
 public:
  /// Records are made for this VM and generation. Keeps 16 bytes per page of RAM. If the first full
  /// pass is of the very machine of `known`, its epoch builds on that one: it is no full one, and
  /// it and all that follow are labelled with that one's generation.
  EpochEncoder(PageHasher hasher, VmId vm, Generation generation,
               std::optional<KnownEpoch> known = {});
  ~EpochEncoder();
  EpochEncoder(EpochEncoder&&) noexcept;
  EpochEncoder& operator=(EpochEncoder&&) noexcept;

  /// lz4's acceleration from here on: 1 at first, more for less work and less compression.
  void set_acceleration(int acceleration);
  /// Opens an epoch. A full pass forgets all earlier pages and starts with the machine record,
  /// unless it is the first and builds on a known epoch; the first epoch ever must be a full pass.
  void begin(const EpochBegin& begin, std::vector<std::byte>& out);
  /// Pages must lie inside the machine given with the full epoch (asserted: capture has checked).
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
