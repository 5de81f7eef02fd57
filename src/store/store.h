// The store: takes many VMs' epochs into one journal, opens them again, and looks after them.
//
// Threads: everything may be called from several threads at once (each session from one). The store
// outlives neither its sessions nor its readers: they keep what they need of it, and the journal
// closes when the last of them is gone.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <vmshadow/clock.h>
#include <vmshadow/epoch_sink.h>
#include <vmshadow/result.h>
#include <vmshadow/shadow_reader.h>

#include "crypt/key_source.h"
#include "io/append_file.h"
#include "store/damage.h"
#include "store/log_writer.h"
#include "store/maintenance.h"
#include "store/retention.h"
#include "store/store_stats.h"
#include "store/tier.h"

namespace vmshadow::store {

struct StoreOptions {
  LogLimits log;
  /// A session hands its records to the log in pieces of about this: all it holds of an open epoch.
  std::size_t piece_bytes = std::size_t{1} << 20;
  /// Where segments go; empty: as recorded in the store, or its own directory.
  std::vector<TierDirectory> tiers;
  RetentionPolicy retention;  ///< of VMs that have none of their own
  MaintenanceOptions maintenance;
  bool background_maintenance = true;  ///< else only maintain() does it
  /// Where VMs' keys are. If it is set, no VM is taken without one, and its epochs are encrypted
  /// before they are written. Null: none is, and a VM that has encrypted epochs is not taken.
  std::shared_ptr<const crypt::KeySource> keys;
};

/// Makes a FileSystem for each of the store's threads that write.
using FileSystemMaker = std::function<Result<std::unique_ptr<io::FileSystem>>()>;

class Store final : public EpochSink {
 public:
  /// Opens the store in `directory` for writing; makes one if it is empty or new. Recovers what is
  /// there: a torn tail is cut off, damage is reported by damage() and stays where it is. `clock`
  /// outlives the store. Errors: Errc::in_use (another process has it open), Errc::not_found (a
  /// tier is not there), Errc::permission, Errc::version, Errc::invalid_argument (not a store;
  /// another store's segment), Errc::corrupt (its identity), Errc::no_space, Errc::io.
  [[nodiscard]] static Result<std::unique_ptr<Store>> open(const std::string& directory,
                                                           const Clock& clock,
                                                           const FileSystemMaker& make_files,
                                                           const StoreOptions& options = {});
  ~Store() override;

  [[nodiscard]] Result<std::unique_ptr<EpochSession>> open_session(
      const std::string& vm_name, const std::string& peer) override;

  /// A reader of this store's epochs that sees each commit at once.
  [[nodiscard]] std::unique_ptr<ShadowReader> reader() const;

  /// Keeps an epoch whatever the retention policy says. Errc::not_found if it is not there.
  [[nodiscard]] Status pin(const std::string& vm_name, Epoch epoch);
  [[nodiscard]] Status unpin(const std::string& vm_name, Epoch epoch);
  /// nullopt: the store's own.
  [[nodiscard]] Status set_retention(const std::string& vm_name,
                                     const std::optional<RetentionPolicy>& policy);
  /// What the VM's kept epochs may take together; 0: any amount. Beyond it its oldest epochs are
  /// dropped, be they in the window; pinned ones and the newest stay.
  [[nodiscard]] Status set_quota(const std::string& vm_name, std::uint64_t bytes);
  /// One pass of maintenance, now.
  [[nodiscard]] Status maintain();
  /// Reads about `bytes` of what is stored and checks it, now.
  [[nodiscard]] Status scrub(std::uint64_t bytes);
  /// Somebody else, who reads the same directory, has read so much of these segments: what is read
  /// again and again belongs on the fast tier.
  void note_reads(const SegmentFiles::Reads& reads) const;
  [[nodiscard]] StoreStats stats() const;

  /// What was found damaged when the store was opened, and since.
  [[nodiscard]] std::vector<Damage> damage() const;
  /// What was cut off when the store was opened.
  [[nodiscard]] const std::optional<TornTail>& torn_tail() const { return torn_tail_; }

  struct State;  ///< shared with sessions; in store.cc

 private:
  Store(std::shared_ptr<State> state, std::vector<Damage> damage,
        std::optional<TornTail> torn_tail);
  [[nodiscard]] Status change_settings(const std::string& vm_name,
                                       const std::function<Status(VmSettings&)>& change);
  std::shared_ptr<State> state_;
  std::vector<Damage> damage_;
  std::optional<TornTail> torn_tail_;
};

}  // namespace vmshadow::store
