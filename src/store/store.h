// The store: takes many VMs' epochs into one journal, and opens them again.
//
// Threads: open_session(), reader() and every session may be used from several threads at once (one
// thread per session). The store outlives neither its sessions nor its readers: they keep what they
// need of it, and the journal closes when the last of them is gone.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <vmshadow/clock.h>
#include <vmshadow/epoch_sink.h>
#include <vmshadow/result.h>
#include <vmshadow/shadow_reader.h>

#include "io/append_file.h"
#include "store/damage.h"
#include "store/log_writer.h"

namespace vmshadow::store {

struct StoreOptions {
  LogLimits log;
  /// A session hands its records to the log in pieces of about this: all it holds of an open epoch.
  std::size_t piece_bytes = std::size_t{1} << 20;
};

class Store final : public EpochSink {
 public:
  /// Opens the store in `directory` for writing; makes one if it is empty or new. Recovers what is
  /// there: a torn tail is cut off, damage is reported by damage() and stays where it is. `clock`
  /// outlives the store. Errors: Errc::in_use (another process has it open), Errc::permission,
  /// Errc::version, Errc::invalid_argument (not a store; another store's segment), Errc::corrupt
  /// (its identity), Errc::no_space, Errc::io.
  [[nodiscard]] static Result<std::unique_ptr<Store>> open(const std::string& directory,
                                                           const Clock& clock,
                                                           std::unique_ptr<io::FileSystem> files,
                                                           const StoreOptions& options = {});
  ~Store() override;

  [[nodiscard]] Result<std::unique_ptr<EpochSession>> open_session(
      const std::string& vm_name, const std::string& peer) override;

  /// A reader of this store's epochs that sees each commit at once.
  [[nodiscard]] std::unique_ptr<ShadowReader> reader() const;
  /// What was found damaged when the store was opened.
  [[nodiscard]] const std::vector<Damage>& damage() const { return damage_; }
  /// What was cut off when the store was opened.
  [[nodiscard]] const std::optional<TornTail>& torn_tail() const { return torn_tail_; }

  struct State;  ///< shared with sessions; in store.cc

 private:
  Store(std::shared_ptr<State> state, std::vector<Damage> damage,
        std::optional<TornTail> torn_tail);
  std::shared_ptr<State> state_;
  std::vector<Damage> damage_;
  std::optional<TornTail> torn_tail_;
};

}  // namespace vmshadow::store
