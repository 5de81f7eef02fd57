// Reads committed epochs back, from a store's directory or beside a live store.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include <vmshadow/shadow_reader.h>

#include "store/damage.h"
#include "store/journal_index.h"
#include "store/segment_files.h"

namespace vmshadow::store {

class Reader final : public ShadowReader {
 public:
  /// Scans `directory` without locking or changing it, also while a store writes there: it sees the
  /// epochs that were committed and whole by then, and no later ones. Damage is no error here, but
  /// of the epochs that need what is damaged. `keys` are asked for once an encrypted epoch is
  /// opened, and may be null.
  [[nodiscard]] static Result<std::unique_ptr<Reader>> open(
      const std::string& directory, std::shared_ptr<const crypt::KeySource> keys = nullptr);
  /// Beside a live store: sees what the index sees.
  Reader(std::shared_ptr<const JournalIndex> index, std::shared_ptr<const SegmentFiles> segments)
      : index_(std::move(index)), segments_(std::move(segments)) {}

  [[nodiscard]] Result<std::vector<VmInfo>> vms() const override;
  [[nodiscard]] Result<VmInfo> vm(const std::string& name) const override;
  [[nodiscard]] Result<std::unique_ptr<EpochImage>> open(const std::string& vm_name,
                                                         Epoch epoch) const override;
  [[nodiscard]] const std::vector<Damage>& damage() const { return damage_; }

  /// What was read through this reader, since this was called last.
  struct Reads {
    SegmentFiles::Reads segments;
    std::map<TierKind, std::uint64_t> tiers;  ///< bytes; of the tiers that there are
  };
  [[nodiscard]] Reads take_reads() const;

 private:
  void name_tiers(VmInfo& info) const;
  std::shared_ptr<const JournalIndex> index_;
  std::shared_ptr<const SegmentFiles> segments_;
  std::vector<Damage> damage_;
  SegmentFiles::Hold held_;
};

}  // namespace vmshadow::store
