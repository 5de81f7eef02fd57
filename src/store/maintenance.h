// What a store does by itself: thins epochs as their VMs' policies say, archives what leaves the
// journal, compacts archives that have become sparse, and keeps the tiers within their capacities.
//
//   thin ─► drain the journal's front ─► compact archives ─► relieve full tiers        (one pass)
//                                                            scrub a little      (between passes)
//                                                            write spare files a little ahead
//
// Nothing of it is needed for what is acknowledged to be safe; a pass that fails is tried again.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <thread>
#include <vector>

#include <vmshadow/clock.h>
#include <vmshadow/result.h>
#include <vmshadow/types.h>

#include "io/append_file.h"
#include "store/access_history.h"
#include "store/archiver.h"
#include "store/clock_steps.h"
#include "store/damage.h"
#include "store/scrubber.h"
#include "store/spare_writer.h"
#include "store/vm_states.h"

namespace vmshadow::store {

struct MaintenanceOptions {
  std::uint64_t archive_segment_bytes = std::uint64_t{256} << 20;
  /// What one run of the archiver takes up at most, in bytes of its sources.
  std::uint64_t run_bytes_max = std::uint64_t{1} << 30;
  /// Journal segments that may be drained stay while what is dead in them is at most this share of
  /// all live bytes, and room is not short: what leaves the window all lives; the longer it waits,
  /// the less of it still does and must be moved.
  double journal_dead_max = 0.08;
  /// Archives are compacted while all of them together are over this many times their live bytes.
  double archive_space_max = 1.15;
  /// Only those are that have less than this share of live bytes.
  double archive_live_max = 0.85;
  /// A tier with less room than this share of its size is relieved: before ingest has to stop for
  /// the room that upkeep needs (LogLimits::reserve_bytes).
  double tier_room_min = 0.2;
  /// Of a large tier not more than this.
  std::uint64_t tier_room_bytes = std::uint64_t{2} << 30;
  /// An archive on a slow tier of which lately this many times its size was read is moved to a fast
  /// one that has room.
  double promote_reads_min = 1.5;
  /// Bytes read and written per second by the archiver; 0: as fast as it can.
  std::uint64_t bytes_per_second = 0;
  /// How long the disk may be unable to read something that is to be archived before it is given up
  /// as lost.
  std::chrono::seconds unreadable_max{600};
  std::chrono::milliseconds interval{1000};  ///< between passes in the background
  /// Spare files (spare_segments.h) that are written ahead while there are fewer, of this size, so
  /// many bytes a second; none while more than that comes in.
  std::size_t spares_ahead = 0;
  std::uint64_t spare_bytes = LogLimits{}.segment_bytes;
  std::uint64_t spare_bytes_per_second = std::uint64_t{32} << 20;
  /// What the background thread reads again per second to see whether it is still whole; 0:
  /// nothing.
  std::uint64_t scrub_bytes_per_second = std::uint64_t{8} << 20;
};

class Maintenance {
 public:
  struct Ground {
    SegmentCatalog& catalog;
    JournalIndex& index;
    const SegmentFiles& segments;
    const Clock& clock;
    LogWriter& log;
    VmStates& states;
    SpareSegments& spares;
  };
  /// `files` is for its use alone.
  Maintenance(Ground ground, std::unique_ptr<io::FileSystem> files,
              const MaintenanceOptions& options);
  /// Ends the background thread; an archiver run under way stops and leaves no trace.
  ~Maintenance();
  Maintenance(const Maintenance&) = delete;
  Maintenance& operator=(const Maintenance&) = delete;

  void start_in_background();
  /// One pass, now. The first error; the steps that do not need what failed are done.
  [[nodiscard]] Status pass();
  /// Reads about `bytes` of what is stored and checks it. Archives that are found damaged are
  /// rewritten: what the index still knows is whole again, what is lost says so from then on.
  [[nodiscard]] Status scrub(std::uint64_t bytes);
  /// Somebody read so much of these segments for epochs that were wanted.
  void note_reads(const SegmentFiles::Reads& reads);
  /// Writes a vm_state after `change` has changed the VM's settings, and then calls it durable.
  [[nodiscard]] Status change_settings(const VmId& vm,
                                       const std::function<Status(VmSettings&)>& change);

  struct Figures {
    std::uint64_t moved_bytes{};    ///< written by the archiver
    std::uint64_t removed_bytes{};  ///< of segments it let go
    std::uint64_t ahead_bytes{};    ///< written to spare files
    std::uint64_t passes{};
    std::uint64_t scrubbed_bytes{};
    std::uint64_t scrub_rounds{};    ///< all of the store
    std::uint64_t salvaged_pages{};  ///< as ArchiveReport has them
    std::uint64_t repaired_pages{};
    std::uint64_t lost_pages{};
    std::map<TierKind, std::uint64_t> read_bytes;  ///< of note_reads(), and through the store
  };
  [[nodiscard]] Figures figures() const;
  /// Damage found on the way.
  [[nodiscard]] std::vector<Damage> damage() const;

 private:
  void run();
  Status thin();
  Status thin_vm(const VmId& vm, std::optional<WallTime> now);
  Status write_state(const VmId& vm);
  Status drain();
  Status compact();
  Status relieve();
  Status promote();
  Status write_ahead();
  Status archive(const std::vector<SegmentId>& sources, const Archiver::Placement& placement);
  void remove_left_behind();
  /// Those of tiers that are short of room with them, or `all` of them. True if there were any.
  bool remove_spares(bool all);
  void add_damage(const std::vector<Damage>& found);
  /// What archives may take of all tiers together.
  [[nodiscard]] std::uint64_t room() const;
  /// Whether a kept epoch's damage is put down to this missing segment.
  [[nodiscard]] bool is_missed(SegmentId segment) const;
  [[nodiscard]] Archiver::Placement placement() const;
  /// Whether a tier is short of room, or would be if it had `taken` bytes more.
  [[nodiscard]] bool is_short(TierIndex tier, std::uint64_t taken = 0) const;
  /// Whether it is as long as it has its spare files: these go first.
  [[nodiscard]] bool is_short_with_spares(TierIndex tier, std::uint64_t taken = 0) const;
  [[nodiscard]] bool is_little(TierIndex tier, std::uint64_t room, std::uint64_t taken) const;
  [[nodiscard]] bool has_tier(TierKind kind) const;
  /// The first journal segment that may not be drained yet: it is still written to, or an epoch
  /// that is not thinned yet (thinned_up_to()) needs it for itself.
  [[nodiscard]] SegmentId unthinned_begins() const;
  bool pace(std::uint64_t bytes);

  Ground ground_;
  const std::unique_ptr<io::FileSystem> files_;
  const MaintenanceOptions options_;

  std::mutex pass_mutex_;      ///< held during a pass
  std::mutex settings_mutex_;  ///< held while a VM's settings or kept epochs change
  Scrubber scrubber_;
  ClockSteps clock_steps_;
  SpareWriter spare_writer_;
  /// unthinned_begins() as this pass's thinning found it. What gets older while the pass goes on
  /// has not been thinned: all of it would be moved, to be dropped a moment later.
  SegmentId thinned_before_;
  std::uint64_t ingested_before_ = 0;  ///< what the log had taken in at the last write_ahead()
  AccessHistory access_;
  /// Archives that cannot be made smaller without a key that is not to be had, and when that was.
  std::set<SegmentId> unopened_;
  std::uint64_t unopened_at_key_change_ = 0;
  std::vector<std::string> left_behind_;           ///< files that could not be removed yet
  std::optional<MonotonicTime> unreadable_since_;  ///< the archiver has got nowhere since
  mutable std::mutex mutex_;
  std::condition_variable stop_;
  bool stopping_ = false;
  Figures figures_;
  std::vector<Damage> damage_;
  std::optional<Errc> last_error_;

  std::thread thread_;
};

}  // namespace vmshadow::store
