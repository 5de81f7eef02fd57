// Reads every byte of a store's journal and proves it: each record's checksums and structure, each
// epoch's order, chain and counts, each page group's decoding. Of encrypted records the last needs
// the VM's key. Never writes; needs no lock.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <vmshadow/result.h>
#include <vmshadow/shadow_reader.h>

#include "crypt/key_source.h"
#include "store/damage.h"
#include "store/recovery.h"

namespace vmshadow::store {

struct VerifyReport {
  std::vector<Damage> damage;  ///< in the order of the journal; empty: all is well
  std::vector<std::string> foreign;
  std::optional<TornTail> torn_tail;  ///< no damage: a writer died, or is writing just now
  std::vector<VmInfo> vms;            ///< with the epochs that can be restored
  std::uint64_t records{};
  std::uint64_t bytes{};
  /// By VM, why its encrypted records could not be opened: of those only the checksums over what is
  /// stored were checked.
  std::map<std::string, Error> unopened;
};

class Verifier {
 public:
  using Progress = std::function<void(const ScanProgress&)>;
  /// An Error means that the store cannot be read at all; damage is in the report.
  [[nodiscard]] static Result<VerifyReport> run(
      const std::string& directory, const Progress& progress = {},
      std::shared_ptr<const crypt::KeySource> keys = nullptr);
};

}  // namespace vmshadow::store
