// The keys of the store's VMs, fetched when one is first needed. Safe from several threads.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include <vmshadow/result.h>
#include <vmshadow/types.h>

#include "crypt/key_source.h"
#include "crypt/vm_key.h"
#include "format/record.h"

namespace vmshadow::store {

class Keyring {
 public:
  /// `source` may be null: then nobody gave any keys.
  explicit Keyring(std::shared_ptr<const crypt::KeySource> source) : source_(std::move(source)) {}

  /// Whether there is somebody to ask for keys: then no VM goes without.
  [[nodiscard]] bool has_source() const { return source_ != nullptr; }
  /// The VM's keys, as they were when first fetched. Errors as KeySource has them; Errc::not_found
  /// if there is no source.
  [[nodiscard]] Result<crypt::VmKeysPtr> keys_of(const VmId& vm, const std::string& name) const;
  /// Fetches them anew: its operator may have changed them. Those known stay as they are.
  [[nodiscard]] Result<crypt::VmKeysPtr> fetch(const VmId& vm, const std::string& name) const;
  /// From now on these are the VM's keys.
  void set(const VmId& vm, crypt::VmKeysPtr keys);
  /// Rises whenever keys were fetched: what was not to be opened before may be now.
  [[nodiscard]] std::uint64_t changes() const { return changes_; }
  /// The plain body of a sealed record of that VM, whose checksums hold, in `out`. Errc::corrupt:
  /// its tag does not match. Errors of other codes: it cannot be read for want of the key.
  [[nodiscard]] Status open(const std::string& name, const format::RecordPrefix& prefix,
                            ByteSpan body, std::vector<std::byte>& out) const;

 private:
  const std::shared_ptr<const crypt::KeySource> source_;
  mutable std::mutex mutex_;
  mutable std::map<VmId, crypt::VmKeysPtr> known_;
  mutable std::atomic<std::uint64_t> changes_ = 0;
};

/// Why a VM's key is not to be had, and what that means for its encrypted epochs.
[[nodiscard]] Error missing_key(Error reason, const std::string& vm_name);
/// Errc::permission: it is another one, and in what it differs.
[[nodiscard]] Error wrong_key(const std::string& difference, const std::string& vm_name);

}  // namespace vmshadow::store
